//! A Kafka topic as its consumers see it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET, Offset};
use catalog_bridge_history::Delivered;
use catalog_bridge_services as services;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset as Position, TopicPartitionList};

/// A running broker.
#[derive(Debug, Clone)]
pub struct Broker {
    address: String,
}

/// One record, as read back.
#[derive(Debug, Clone)]
pub struct Record {
    pub partition: i32,
    pub key: String,
    pub body: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// The broker that the tests of this binary share.
pub async fn shared() -> Result<Broker> {
    Ok(Broker::at(services::shared::kafka().await?.bootstrap()))
}

impl Broker {
    pub fn at(address: impl Into<String>) -> Self {
        Broker { address: address.into() }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// A new topic of so many partitions.
    pub async fn create_topic(&self, partitions: i32) -> Result<String> {
        self.create_topic_with(partitions, &[]).await
    }

    /// As `create_topic`, with settings of the topic.
    pub async fn create_topic_with(&self, partitions: i32, settings: &[(&str, &str)]) -> Result<String> {
        let topic = format!("catalog-{}", uuid::Uuid::new_v4().simple());
        self.create_topic_named(&topic, partitions, settings).await?;
        Ok(topic)
    }

    /// A topic of this name, on as many replicas as the brokers give by default.
    pub async fn create_topic_named(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        let new = settings.iter().fold(new, |topic, (name, value)| topic.set(name, value));
        let made = self.admin()?.create_topics(&[new], &options()).await?;
        for result in made {
            result.map_err(|(topic, code)| anyhow::anyhow!("creating {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Deletes a topic with what it holds.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        for result in self.admin()?.delete_topics(&[topic], &options()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("deleting {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Sets one setting of a topic; all others become the brokers' defaults.
    pub async fn set_topic(&self, topic: &str, name: &str, value: &str) -> Result<()> {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        for result in self.admin()?.alter_configs(&[change], &options()).await? {
            result.map_err(|(_, code)| anyhow::anyhow!("setting {name} of {topic}: {code}"))?;
        }
        Ok(())
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.config().create()?)
    }

    /// Every record of a topic, each partition in its order.
    pub async fn read_records(&self, topic: &str) -> Result<Vec<Record>> {
        let (broker, topic) = (self.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || broker.read(&topic)).await?
    }

    /// As `read_records`, as the judge wants it.
    pub async fn read_all(&self, topic: &str) -> Result<Vec<Delivered>> {
        self.read_records(topic).await?.into_iter().map(delivered).collect()
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    fn read(&self, topic: &str) -> Result<Vec<Record>> {
        let timeout = Duration::from_secs(30);
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", uuid::Uuid::new_v4().to_string())
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), timeout)?;
        let partitions = metadata.topics().first().with_context(|| format!("topic {topic}"))?.partitions().len();
        let mut records = Vec::new();
        for partition in 0..i32::try_from(partitions)? {
            let (low, high) = consumer.fetch_watermarks(topic, partition, timeout)?;
            if low == high {
                continue;
            }
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, partition, Position::Offset(low))?;
            consumer.assign(&list)?;
            let begin = Instant::now();
            // The last offsets may be control records of a transaction, which are never handed out: the position tells the end.
            while consumer.position()?.find_partition(topic, partition).map(|element| element.offset())
                != Some(Position::Offset(high))
            {
                match consumer.poll(Duration::from_millis(200)) {
                    Some(message) => records.push(record(&message?)?),
                    None if begin.elapsed() > Duration::from_secs(60) => {
                        bail!("{topic}/{partition}: offset {high} was not reached in 60 s")
                    }
                    None => {}
                }
            }
        }
        Ok(records)
    }
}

fn options() -> AdminOptions {
    let limit = Some(Duration::from_secs(60));
    AdminOptions::new().operation_timeout(limit).request_timeout(limit)
}

fn record(message: &BorrowedMessage<'_>) -> Result<Record> {
    let headers = message.headers().map(|headers| {
        headers
            .iter()
            .map(|header| {
                (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
            })
            .collect()
    });
    Ok(Record {
        partition: message.partition(),
        key: String::from_utf8(message.key().context("a record without a key")?.to_vec())?,
        body: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    })
}

fn delivered(record: Record) -> Result<Delivered> {
    let number = |name: &str| {
        record.header(name).with_context(|| format!("a record without {name}"))?.parse::<u64>().context("a number")
    };
    Ok(Delivered {
        offset: Offset::new(number(BRIDGE_OFFSET)?),
        generation: number(BRIDGE_GENERATION)?,
        bytes: format!("{:?}{:?}", record.headers, record.body).into_bytes(),
        key: record.key,
    })
}
