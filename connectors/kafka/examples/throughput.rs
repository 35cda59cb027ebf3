//! Compares the connector with a bare publisher of the same client library and settings, in one run on one broker:
//! `cargo run --release -p catalog-bridge-kafka --example throughput -- 127.0.0.1:9092 [messages]`
//!
//! Rounds alternate, because one machine's speed drifts by more than the difference. Compare ratios, not rates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use catalog_bridge_api::{
    Ack, Acks, BuildContext, Claim, ConnectorKind, EntityRef, EventType, Lease, Message, MessageId, Ordering, SinkName,
    feed,
};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use serde_json::json;
use uuid::Uuid;

const PARTITIONS: i32 = 4;
const ROUNDS: usize = 5;
const BODY_BYTES: usize = 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().context("the address of a broker is missing")?;
    let count = arguments.next().map_or(Ok(200_000), |count| count.parse())?;
    let messages: Vec<Message> = (1..=count).map(message).collect();
    let mut rates = vec![Vec::new(); 4];
    for _ in 0..ROUNDS {
        rates[0].push(bare(&brokers, &messages, false).await?);
        rates[1].push(bare(&brokers, &messages, true).await?);
        rates[2].push(connector(&brokers, &messages, "idempotent").await?);
        rates[3].push(connector(&brokers, &messages, "transactional").await?);
    }
    let names = ["bare, no headers", "bare, same headers", "connector, idempotent", "connector, transactional"];
    let median = |rates: &Vec<f64>| {
        let mut sorted = rates.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let base = median(&rates[1]);
    println!("{count} messages of {BODY_BYTES} bytes, {ROUNDS} rounds");
    for (name, rates) in names.iter().zip(&rates) {
        let list: Vec<String> = rates.iter().map(|rate| format!("{:.0}k", rate / 1000.0)).collect();
        println!(
            "{name:26} median {:6.0}k/s  ratio {:.2}  [{}]",
            median(rates) / 1000.0,
            median(rates) / base,
            list.join(" ")
        );
    }
    Ok(())
}

fn message(offset: u64) -> Message {
    let entity_ref = EntityRef::parse(&format!("component:default/entity-{}", offset % 10_000)).expect("valid");
    let attributes = vec![
        ("specversion", "1.0".to_owned()),
        ("id", offset.to_string()),
        ("source", format!("/catalog/{}", Uuid::from_u128(1))),
        ("type", "io.backstage.catalog.entity.updated.v1".to_owned()),
        ("subject", entity_ref.to_string()),
        ("time", "2026-01-01T00:00:00Z".to_owned()),
        ("partitionkey", entity_ref.to_string()),
        ("sequence", format!("{offset:020}")),
    ];
    Message {
        id: MessageId { log_id: Uuid::from_u128(1), generation: 1, offset: offset.into() },
        entity_ref,
        event_type: EventType::Updated,
        attributes,
        content_type: "application/json",
        body: "x".repeat(BODY_BYTES).into(),
        is_reference: false,
    }
}

async fn new_topic(brokers: &str) -> Result<String> {
    let name = format!("throughput-{}", Uuid::new_v4().simple());
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    admin.create_topics([&NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1))], &options).await?;
    Ok(name)
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, _: usize) {
        assert!(result.is_ok());
        self.0.fetch_add(1, Atomic::SeqCst);
    }
}

/// What an application would write: one loop, explicit partitions, reports counted.
async fn bare(brokers: &str, messages: &[Message], with_headers: bool) -> Result<f64> {
    let topic = new_topic(brokers).await?;
    let count = Count::default();
    let producer: ThreadedProducer<Count> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("enable.gapless.guarantee", "true")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "20000")
        .set("queue.buffering.max.kbytes", "32768")
        .create_with_context(count.clone())?;
    let began = Instant::now();
    for (index, message) in messages.iter().enumerate() {
        let mut record = BaseRecord::with_opaque_to(&topic, index)
            .partition(i32::try_from(index % 4)?)
            .key(message.entity_ref.as_str())
            .payload(&message.body[..]);
        if with_headers {
            let mut headers = OwnedHeaders::new();
            for (name, value) in &message.attributes {
                headers = headers.insert(Header { key: &format!("ce_{name}"), value: Some(value) });
            }
            let number = message.offset().to_string();
            for name in ["content-type", "log-id-of-the-catalog", "generation-of-the-sink", "offset-in-the-log", "sink"]
            {
                headers = headers.insert(Header { key: name, value: Some(&number) });
            }
            record = record.headers(headers);
        }
        while let Err((error, same)) = producer.send(record) {
            anyhow::ensure!(error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull), "{error}");
            record = same;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    while count.0.load(Atomic::SeqCst) < messages.len() as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(messages.len() as f64 / began.elapsed().as_secs_f64())
}

/// The connector as the driver runs it, with a window of its limits.
async fn connector(brokers: &str, messages: &[Message], delivery: &str) -> Result<f64> {
    let topic = new_topic(brokers).await?;
    let sink = SinkName::parse("throughput")?;
    let section = json!({ "brokers": [brokers], "topic": topic, "delivery": delivery });
    let context = BuildContext { sink: sink.clone(), ordering: Ordering::Entity, ensure: false };
    let connector = catalog_bridge_kafka::KIND.build(section, context)?;
    let lease = Lease::unlimited();
    let last = messages.len() as u64;
    let claim = Claim {
        log_id: Uuid::from_u128(1),
        sink,
        generation: 1,
        epoch: 1,
        checkpoint: 0.into(),
        head: last.into(),
        ordering: Ordering::Entity,
        state: None,
        lease: lease.clone(),
    };
    let session = connector.open(claim).await?;
    let window = connector.limits().window_events;
    let (sender, feed) = feed(window, lease);
    let (acks, mut receiver) = Acks::channel();
    let began = Instant::now();
    let running = tokio::spawn(session.run(feed, acks));
    let room = Arc::new(tokio::sync::Semaphore::new(window));
    let counting = tokio::spawn({
        let room = room.clone();
        async move {
            let mut acknowledged = 0;
            while acknowledged < last {
                let newly = match receiver.next().await {
                    Some(Ack::One(_)) => 1,
                    Some(Ack::UpTo(offset)) => offset.get() - acknowledged,
                    Some(_) => 0,
                    None => break,
                };
                acknowledged += newly;
                room.add_permits(usize::try_from(newly).expect("small"));
            }
            acknowledged
        }
    });
    for message in messages {
        room.acquire().await?.forget();
        anyhow::ensure!(sender.offer(message.clone()).await, "the session ended early");
    }
    anyhow::ensure!(counting.await? == last, "not everything was acknowledged");
    let rate = messages.len() as f64 / began.elapsed().as_secs_f64();
    drop(sender);
    running.await??;
    Ok(rate)
}
