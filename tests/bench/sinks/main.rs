//! Throughput per sink: our delivery, from a log on SQLite to the broker's acknowledgement, beside a bare publisher of the same
//! client library with the same settings, window, headers and bodies.
//!
//! `cargo run --release -p catalog-bridge-bench --bin sinks -- [EVENTS] [NAME…]` prints a table in Markdown. The two take turns, each
//! round into an empty destination, and the median of three rounds counts. The machine decides the rates; compare the ratios.
//! A destination is a file beside this one and a line in `destinations`.

mod nats;
mod rabbitmq;
mod sqs;
mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use catalog_bridge::delivery::{self, Nudge, OnExpired, OnOversize, OnRefused, Sink};
use catalog_bridge::filter::View;
use catalog_bridge::sinks::connector_kind;
use catalog_bridge::store::{
    Append, Change, ConsumerKind, Metrics, OnOwned, ReadLimits, Settings, Start, Store, Tail, Upsert, open,
};
use catalog_bridge::telemetry::StatusBoard;
use catalog_bridge_api::{BuildContext, Cause, EntityRef, JsonText, Message, Offset, Ordering, SinkName, SourceName};
use serde_json::Value;

const EVENTS: usize = 100_000;
const ENTITIES: usize = 10_000;
const ROUNDS: usize = 3;

/// Where both deliver to.
#[async_trait]
pub(crate) trait Destination: Send + Sync {
    /// As the table names it; its first word, in lower case, is the connector's kind.
    fn name(&self) -> &'static str;

    /// What is sent to it at most.
    fn events_max(&self) -> usize {
        usize::MAX
    }

    /// Makes it empty; returns the connector's section.
    async fn fresh(&mut self) -> Result<Value>;

    /// Publishes without the bridge; how long from the first send to the last acknowledgement.
    async fn publish(&self, messages: Vec<Message>) -> Result<Duration>;

    /// How many messages it holds.
    async fn count(&self) -> Result<usize>;
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let events = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(EVENTS);
    let names: Vec<&String> = arguments.iter().filter(|argument| argument.parse::<usize>().is_err()).collect();
    println!(
        "| sink | bare publisher, events/s (each round) | catalog-bridge, events/s (each round) | ratio |\n|---|---|---|---|"
    );
    for destination in &mut destinations().await? {
        if names.is_empty() || names.iter().any(|name| destination.name().to_lowercase().contains(name.as_str())) {
            let events = events.min(destination.events_max());
            let directory = tempfile::tempdir()?;
            let log = open(&Settings::sqlite(directory.path().join("log.db")), Metrics::default()).await?;
            fill(&log, events).await?;
            compare(&log, &mut **destination, events).await?;
        }
    }
    Ok(())
}

async fn destinations() -> Result<Vec<Box<dyn Destination>>> {
    Ok(vec![
        Box::new(rabbitmq::Queue::start("quorum").await?),
        Box::new(rabbitmq::Queue::start("classic").await?),
        Box::new(nats::Stream::start().await?),
        Box::new(sqs::Queue::start("SQS FIFO (ElasticMQ)", Duration::ZERO).await?),
        Box::new(sqs::Queue::start("SQS FIFO (ElasticMQ), 20 ms away", Duration::from_millis(20)).await?),
        Box::new(webhook::Receiver::start().await?),
    ])
}

async fn compare(log: &Arc<dyn Store>, destination: &mut dyn Destination, events: usize) -> Result<()> {
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let sink = sink(destination, round).await?;
        let messages = encode(log, &sink).await?;
        let took = destination.publish(messages).await?;
        ensure!(
            destination.count().await? == events,
            "{}: the bare publisher's messages are not there",
            destination.name()
        );
        bare.push(events as f64 / took.as_secs_f64());

        let rate = deliver(log, self::sink(destination, round).await?).await?;
        ensure!(destination.count().await? == events, "{}: our messages are not there", destination.name());
        ours.push(rate);
    }
    let text = |rates: &[f64]| rates.iter().map(|rate| format!("{rate:.0}")).collect::<Vec<_>>().join(", ");
    println!(
        "| {} | {:.0} ({}) | {:.0} ({}) | {:.2} |",
        destination.name(),
        median(&bare),
        text(&bare),
        median(&ours),
        text(&ours),
        median(&ours) / median(&bare),
    );
    Ok(())
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A sink that the log does not know yet, to an empty destination.
async fn sink(destination: &mut dyn Destination, round: usize) -> Result<Sink> {
    let section = destination.fresh().await?;
    let kind = destination.name().split([' ', ',']).next().unwrap_or_default().to_lowercase();
    let kind = connector_kind(&kind).with_context(|| format!("no connector {kind:?} in this build"))?;
    let name = SinkName::parse(&format!("round-{round}-{}", uuid::Uuid::new_v4().simple()))?;
    let context = BuildContext { sink: name.clone(), ordering: Ordering::Entity, ensure: false };
    let connector = kind.build(section, context)?;
    let encoding = connector.limits().encoding;
    Ok(Sink {
        name,
        protocol: kind.name(),
        connector: connector.into(),
        view: View::default(),
        omit: Vec::new(),
        start: Start::Earliest,
        encoding,
        ordering: Ordering::Entity,
        on_refused: OnRefused::Block,
        on_oversize: OnOversize::Reference,
        on_expired: OnExpired::Wait,
        public_url: None,
        base_path: "/api/catalog".to_owned(),
    })
}

/// What the bare publisher sends: the same messages, made beforehand.
async fn encode(log: &Arc<dyn Store>, sink: &Sink) -> Result<Vec<Message>> {
    let encoder = sink.encoder(log.state().await?.log_id, 1);
    let (mut messages, mut after) = (Vec::new(), Offset::ZERO);
    loop {
        let page = log.read(after, ReadLimits { events_max: 1_000, bytes_max: 4 << 20 }).await?;
        let Some(last) = page.entries.last() else { return Ok(messages) };
        after = last.event.offset;
        messages.extend(page.entries.iter().map(|entry| encoder.encode(&entry.event)));
    }
}

/// Events per second from the first checkpoint to the last one: connecting is not counted.
async fn deliver(log: &Arc<dyn Store>, sink: Sink) -> Result<f64> {
    let name = sink.name.clone();
    let head = log.state().await?.head;
    let tail = Tail::new(Arc::clone(log), 64 << 20);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(delivery::run(
        vec![sink],
        tail,
        StatusBoard::default(),
        delivery::Metrics::new(),
        Nudge::new(),
        delivery::Settings::new("bench"),
        shutdown.clone(),
    ));
    let mut begin: Option<(Instant, Offset)> = None;
    let rate = loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let row = log.checkpoint(ConsumerKind::Sink, name.as_str()).await?;
        let Some(offset) = row.map(|row| row.offset).filter(|offset| *offset > Offset::ZERO) else { continue };
        let (since, from) = *begin.get_or_insert((Instant::now(), offset));
        if offset == head {
            break (head.get() - from.get()) as f64 / since.elapsed().as_secs_f64();
        }
    };
    shutdown.cancel();
    running.await?;
    Ok(rate)
}

async fn fill(log: &Arc<dyn Store>, events: usize) -> Result<()> {
    for from in (0..events).step_by(1_000) {
        let changes = (from..(from + 1_000).min(events)).map(change).collect();
        let append = Append {
            source: SourceName::parse("bench")?,
            changes,
            position: None,
            idempotency: None,
            rejected: Vec::new(),
            on_owned: OnOwned::RefuseAll,
        };
        log.append(append).await.context("append")?;
    }
    Ok(())
}

/// An update of one of the entities, about 1 KiB.
fn change(number: usize) -> Change {
    let name = format!("service-{}", number % ENTITIES);
    let filler = "a description that says what this is ".repeat(23);
    let entity = format!(
        r#"{{"apiVersion":"backstage.io/v1alpha1","kind":"Component","metadata":{{"namespace":"default","name":"{name}","description":"{filler}"}},"spec":{{"type":"service","lifecycle":"production","owner":"team-{}","version":"{number}"}}}}"#,
        number % 50,
    );
    Change::Upsert(Upsert {
        entity_ref: EntityRef::from_parts("component", "default", &name).expect("a ref"),
        uid: None,
        entity: JsonText::from_trusted(entity),
        source_version: None,
        source_position: None,
        occurred_at: None,
        cause: Cause::Ingest,
    })
}
