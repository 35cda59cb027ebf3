//! Brokers that the tests share, and reading queues back.

use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{
    BRIDGE_GENERATION, BRIDGE_OFFSET, BuildContext, Connector, ConnectorKind, Ordering, SinkName,
};
use catalog_bridge_conformance::Delivered;
use catalog_bridge_services::{RabbitMq, RabbitMqOptions, RabbitMqVersion};
use futures::StreamExt;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

/// A well one.
pub(crate) async fn shared() -> Result<&'static RabbitMq> {
    static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
    SHARED.get_or_try_init(|| start(RabbitMqOptions::default())).await
}

/// One that takes small messages only.
pub(crate) async fn strict(version: RabbitMqVersion) -> Result<&'static RabbitMq> {
    static NEW: OnceCell<RabbitMq> = OnceCell::const_new();
    static OLD: OnceCell<RabbitMq> = OnceCell::const_new();
    let cell = match version {
        RabbitMqVersion::V4 => &NEW,
        RabbitMqVersion::V3 => &OLD,
    };
    let settings = "max_message_size = 100000".to_owned();
    cell.get_or_try_init(|| start(RabbitMqOptions { version, settings, ..Default::default() })).await
}

/// On a thread that may block: the kit wants futures that may move between threads, and starting a broker is none.
pub(crate) async fn start(options: RabbitMqOptions) -> Result<RabbitMq> {
    tokio::task::spawn_blocking(|| Handle::current().block_on(RabbitMq::start(options))).await?
}

/// A name that no other test has.
pub(crate) fn fresh(stem: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{stem}-{}", NEXT.fetch_add(1, Atomic::Relaxed))
}

/// The section of a sink with its own exchange and queue, by `ensure`.
pub(crate) fn section(address: &str, name: &str) -> Value {
    json!({ "url": format!("amqp://guest:guest@{address}/%2f"), "exchange": name, "queue": name })
}

pub(crate) fn build(section: Value, ensure: bool) -> Result<Box<dyn Connector>> {
    build_for(section, ensure, Ordering::Entity)
}

pub(crate) fn build_for(section: Value, ensure: bool, ordering: Ordering) -> Result<Box<dyn Connector>> {
    let context = BuildContext { sink: SinkName::parse("conformance")?, ordering, ensure };
    Ok(catalog_bridge_rabbitmq::KIND.build(section, context)?)
}

pub(crate) async fn channel(address: &str) -> Result<(Connection, Channel)> {
    let url = format!("amqp://guest:guest@{address}/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.context("connecting")?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

/// A topic exchange and a durable queue of the same name, not bound.
pub(crate) async fn declare(channel: &Channel, name: &str, arguments: &[(&str, AMQPValue)]) -> Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    let mut table = FieldTable::default();
    for (argument, value) in arguments {
        table.insert((*argument).into(), value.clone());
    }
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), durable, table).await?;
    Ok(())
}

pub(crate) async fn bind(channel: &Channel, name: &str, key: &str) -> Result<()> {
    let (options, table) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(name.into(), name.into(), key.into(), options, table).await.context("binding")
}

/// Takes everything out of a queue, in its order; an absent queue is empty.
pub(crate) async fn take_all(address: &str, queue: &str) -> Result<Vec<Delivered>> {
    let (_connection, channel) = channel(address).await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let Ok(found) = channel.queue_declare(queue.into(), passive, FieldTable::default()).await else {
        return Ok(Vec::new());
    };
    let count = usize::try_from(found.message_count())?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut consumer = channel.basic_consume(queue.into(), "reader".into(), options, FieldTable::default()).await?;
    let mut taken = Vec::with_capacity(count);
    loop {
        let patience = if taken.len() < count { Duration::from_secs(20) } else { Duration::from_millis(100) };
        match tokio::time::timeout(patience, consumer.next()).await {
            Ok(Some(delivery)) => taken.push(delivered(&delivery?.properties)?),
            Ok(None) => break,
            Err(_) => {
                ensure!(taken.len() >= count, "{} of {count} messages came from {queue}", taken.len());
                break;
            }
        }
    }
    channel.basic_cancel("reader".into(), BasicCancelOptions::default()).await?;
    // What was already under way; the consumer ends after it.
    while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await {
        taken.push(delivered(&delivery?.properties)?);
    }
    Ok(taken)
}

pub(crate) fn delivered(properties: &lapin::BasicProperties) -> Result<Delivered> {
    let headers = properties.headers().as_ref().context("headers")?;
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
        other => anyhow::bail!("{name} is {other:?}"),
    };
    ensure!(properties.delivery_mode() == &Some(2), "the message is not persistent");
    Ok(Delivered {
        offset: text(BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: text("cloudEvents_subject")?,
        generation: text(BRIDGE_GENERATION)?.parse()?,
        bytes: format!("{properties:?}").into_bytes(),
    })
}
