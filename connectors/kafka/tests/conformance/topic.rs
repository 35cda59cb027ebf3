//! Topics of the test broker: made, changed and read back, with plain clients of our own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use catalog_bridge_history::Delivered;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// A record as the topic holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Record {
    pub(crate) fn offset(&self) -> u64 {
        self.headers["catalog-bridge-offset"].parse().expect("a number")
    }
}

fn admin(address: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", address).create()?)
}

/// A name that no other test has.
pub(crate) fn new_name(stem: &str) -> String {
    format!("{stem}-{}", uuid::Uuid::new_v4().simple())
}

/// Creates a topic with a new name.
pub(crate) async fn create(address: &str, stem: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<String> {
    let name = new_name(stem);
    create_named(address, &name, partitions, settings).await?;
    Ok(name)
}

/// Creates a topic with a new name and so many replicas.
pub(crate) async fn create_replicated(address: &str, stem: &str, partitions: i32, replicas: i32) -> Result<String> {
    let name = new_name(stem);
    create_topic(address, &NewTopic::new(&name, partitions, TopicReplication::Fixed(replicas))).await?;
    Ok(name)
}

pub(crate) async fn create_named(address: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    create_topic(address, &topic).await
}

/// Creates it, and waits until the broker knows it and its leaders: it answers before that.
async fn create_topic(address: &str, topic: &NewTopic<'_>) -> Result<()> {
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match admin(address)?.create_topics([topic], &options).await?.remove(0) {
            Ok(_) => break,
            // A topic that was just deleted lingers.
            Err(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(200)).await,
            Err((name, code)) => anyhow::bail!("topic {name}: {code}"),
        }
    }
    let (address, name) = (address.to_owned(), topic.name.to_owned());
    tokio::task::spawn_blocking(move || wait_until_known(&address, &name)).await?
}

fn wait_until_known(address: &str, name: &str) -> Result<()> {
    let admin = admin(address)?;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let metadata = admin.inner().fetch_metadata(Some(name), Duration::from_secs(30))?;
        let partitions = metadata.topics().first().map(MetadataTopic::partitions).unwrap_or_default();
        if !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "topic {name} never became known");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) async fn delete(address: &str, name: &str) -> Result<()> {
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let answer = admin(address)?.delete_topics(&[name], &options).await?.remove(0);
    answer.map(|_| ()).map_err(|(_, code)| anyhow::anyhow!("topic {name}: {code}"))
}

pub(crate) async fn grow(address: &str, name: &str, partitions: usize) -> Result<()> {
    let answers =
        admin(address)?.create_partitions([&NewPartitions::new(name, partitions)], &AdminOptions::new()).await?;
    ensure!(answers.into_iter().all(|answer| answer.is_ok()), "topic {name} did not grow");
    Ok(())
}

/// Sets one of the topic's settings; the others become the broker's defaults.
pub(crate) async fn set(address: &str, name: &str, key: &str, value: &str) -> Result<()> {
    let change = AlterConfig::new(ResourceSpecifier::Topic(name)).set(key, value);
    let answer = admin(address)?.alter_configs([&change], &AdminOptions::new()).await?.remove(0);
    answer.map(|_| ()).map_err(|(_, code)| anyhow::anyhow!("topic {name}: {code}"))
}

/// Everything that the topic holds, partition after partition; of transactions only what is committed.
pub(crate) async fn read(address: &str, name: &str) -> Result<Vec<Record>> {
    let (address, name) = (address.to_owned(), name.to_owned());
    tokio::task::spawn_blocking(move || read_blocking(&address, &name)).await?
}

fn read_blocking(address: &str, name: &str) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(name), Duration::from_secs(30))?;
    let partitions = metadata.topics().first().context("no such topic")?.partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(name, i32::try_from(partition)?, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut records, mut unread) = (vec![Vec::new(); partitions], partitions);
    let end = Instant::now() + Duration::from_secs(120);
    while unread > 0 {
        ensure!(Instant::now() < end, "topic {name} was not read to its end");
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => records[usize::try_from(message.partition())?].push(record(&message)),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => unread -= 1,
            _ => {}
        }
    }
    Ok(records.concat())
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().map(|headers| headers.iter().collect::<Vec<_>>()).unwrap_or_default();
    Record {
        partition: message.partition(),
        key: text(message.key().unwrap_or_default()),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.iter().map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default()))).collect(),
    }
}

/// The records as the judge of histories wants them.
pub(crate) fn delivered(records: &[Record]) -> Vec<Delivered> {
    let bytes = |record: &Record| format!("{:?}{:?}", record.headers, record.value).into_bytes();
    let entry = |record: &Record| Delivered {
        offset: record.offset().into(),
        key: record.key.clone(),
        generation: record.headers["catalog-bridge-generation"].parse().expect("a number"),
        bytes: bytes(record),
    };
    records.iter().map(entry).collect()
}
