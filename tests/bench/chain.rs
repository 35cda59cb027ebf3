//! Throughput and latency of the whole chain on real parts: `cargo bench`. Prints a table; asserts nothing about time.
//!
//! The machine decides the absolute figures; compare within one run.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use catalog_bridge_services::{Nats, NatsOptions, RabbitMq, RabbitMqOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset as Position, TopicPartitionList};
use serde_json::{Value, json};

use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, catalog_database, component, kafka, stores};

const EVENTS: usize = 100_000;
const CLIENTS: usize = 4;
const BATCH: usize = 1000;

fn main() -> Result<()> {
    // `cargo test --benches` builds and starts this too; there is nothing to test in it.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        println!("| what | figure |\n|---|---|");
        throughput().await?;
        latency().await
    })
}

async fn throughput() -> Result<()> {
    let broker = kafka::shared().await?;
    let rabbit = RabbitMq::start(RabbitMqOptions::default()).await?;
    let nats = Nats::start(NatsOptions::default()).await?;
    for store in stores().await? {
        let queue = store.name();
        let place = Place::new()?;
        let log = format!("log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\n", store.log(&place)?);
        let daemon = place.start(&log).await?;
        let begin = Instant::now();
        ingest(&daemon).await?;
        row(
            &format!("{}: into the log by HTTP ingest, {CLIENTS} clients, batches of {BATCH}, 1 KiB", store.name()),
            begin,
        );
        let begin = Instant::now();
        let bytes = read(&daemon).await?;
        row(&format!("{}: over REST, one reader, limit 1000 ({} MiB)", store.name(), bytes >> 20), begin);
        let memory = daemon.peak_memory_bytes()?;
        daemon.stop().await?;

        for (sink, section) in [
            (
                "kafka",
                format!("kafka: {{ brokers: [\"{}\"], topic: {} }}", broker.address(), broker.create_topic(4).await?),
            ),
            ("rabbitmq", format!("rabbitmq: {{ url: \"{}\", exchange: {queue}, queue: {queue} }}", rabbit.url(1))),
            (
                "nats",
                format!("nats: {{ servers: [\"{}\"], stream: {queue}, subject: \"{queue}.{{name}}\" }}", nats.url()),
            ),
            ("file", format!("file: {{ path: \"{}/events.ndjson\" }}", place.path().display())),
        ] {
            let config =
                format!("{log}sinks: {{ {sink}: {{ {section}, start: earliest, ensure: {} }} }}\n", sink != "file");
            let begin = Instant::now();
            let daemon = place.start(&config).await?;
            daemon
                .wait_until("the backlog is delivered", async || {
                    Ok(daemon.sink(sink).await?["checkpoint"].as_u64() == Some(EVENTS as u64))
                })
                .await?;
            row(&format!("{}: backlog to {sink}, start of the daemon included, acknowledged", store.name()), begin);
            let delivering = daemon.peak_memory_bytes()?;
            println!("| {}: peak RSS while delivering to {sink} | {} MiB |", store.name(), delivering >> 20);
            daemon.stop().await?;
        }
        println!("| {}: peak RSS while ingesting and reading | {} MiB |", store.name(), memory >> 20);
    }
    Ok(())
}

fn row(what: &str, begin: Instant) {
    println!("| {what} | {:.0} events/s |", EVENTS as f64 / begin.elapsed().as_secs_f64());
}

async fn ingest(daemon: &Daemon) -> Result<()> {
    let filler = "f".repeat(700);
    let entity = |number: usize| -> Value {
        let mut entity = component(&format!("e{}", number % 10_000), number as u64);
        entity["spec"]["filler"] = json!(filler);
        json!({ "upsert": entity })
    };
    let next = Mutex::new((0..EVENTS).step_by(BATCH));
    let client = async || -> Result<()> {
        loop {
            let Some(from) = next.lock().expect("no client panicked").next() else { return Ok(()) };
            daemon.ingest("push", &(from..from + BATCH).map(entity).collect::<Vec<_>>()).await?;
        }
    };
    futures::future::try_join_all((0..CLIENTS).map(|_| client())).await.map(drop)
}

/// Reads the log whole; returns the bytes.
async fn read(daemon: &Daemon) -> Result<usize> {
    let (mut at, mut bytes) = (0, 0);
    loop {
        let url = format!("{}/api/catalog/events?offset={at}&wait=0&limit=1000", daemon.http);
        let body = daemon.client().get(url).send().await?.bytes().await?;
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Reply {
            last_event_offset: u64,
        }
        let reply: Reply = serde_json::from_slice(&body)?;
        if reply.last_event_offset == at {
            return Ok(bytes);
        }
        bytes += body.len();
        at = reply.last_event_offset;
    }
}

/// From the catalog's COMMIT to a Kafka consumer, one change at a time on an idle system.
async fn latency() -> Result<()> {
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(1).await?;
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let place = Place::new()?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\nsinks: {{ platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }} }} }}\n",
        place.path().display(),
        catalog.bridge_url(),
        broker.address()
    );
    let daemon = place.start(&config).await?;
    catalog.put_one("first", 0).await?;
    daemon.wait_until("the chain runs", async || Ok(daemon.sink("platform").await?["checkpoint"] == 1)).await?;
    let (sender, receiver) = std::sync::mpsc::channel::<(String, Instant)>();
    let address = broker.address().to_owned();
    std::thread::spawn(move || -> Result<()> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", address)
            .set("group.id", "latency")
            .set("fetch.wait.max.ms", "5")
            .create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Position::Beginning)?;
        consumer.assign(&list)?;
        loop {
            if let Some(message) = consumer.poll(Duration::from_millis(100)) {
                let key = String::from_utf8_lossy(message?.key().unwrap_or_default()).into_owned();
                if sender.send((key, Instant::now())).is_err() {
                    return Ok(());
                }
            }
        }
    });
    let mut connection = catalog.connect().await?;
    for (what, pause, count) in
        [("idle (one change every 11 s)", 11_000, 12), ("busy (one change every 100 to 350 ms)", 100, 200)]
    {
        let mut delays = Vec::new();
        for number in 0..count {
            // Not in step with the polls.
            tokio::time::sleep(Duration::from_millis(pause + rand::random_range(0..250))).await;
            let name = format!("l{pause}-{number}");
            support::catalog::put(&mut connection, &name, || number).await?;
            let committed = Instant::now();
            loop {
                let (key, seen) = receiver.recv_timeout(Duration::from_secs(60)).context("a record within a minute")?;
                if key.ends_with(&name) {
                    delays.push(seen.saturating_duration_since(committed));
                    break;
                }
            }
        }
        delays.sort();
        let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize].as_millis();
        println!(
            "| catalog commit to Kafka consumer, {what}, n={count}: p50 / p99 / max | {} / {} / {} ms |",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    println!("| peak RSS of the small chain | {} MiB |", daemon.peak_memory_bytes()? >> 20);
    Ok(())
}
