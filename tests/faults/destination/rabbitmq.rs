//! A RabbitMQ quorum queue bound to a topic exchange, behind one proxy, which stands for the load balancer of a cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET};
use catalog_bridge_history::{Delivered, Lane};
use catalog_bridge_services::{RabbitMq, RabbitMqOptions};
use futures::StreamExt;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use super::proxies::Proxies;
use super::{Destination, fresh_name};
use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::Cell;

/// A broker, and the queue of the cell that runs.
pub(crate) struct RabbitQueue {
    cluster: RabbitMq,
    nodes: usize,
    proxies: Proxies,
    name: String,
    /// What was taken out of the queue.
    taken: Vec<Delivered>,
    /// The node that the sink is connected to.
    node: usize,
    /// The node that was killed or frozen.
    victim: usize,
}

impl RabbitQueue {
    pub(crate) async fn start(nodes: usize) -> Result<Self> {
        let cluster = RabbitMq::start(RabbitMqOptions { nodes, ..RabbitMqOptions::default() }).await?;
        let proxies = Proxies::reserve(1)?;
        proxies.forward_to(&[cluster.address(1)])?;
        Ok(RabbitQueue { cluster, nodes, proxies, name: String::new(), taken: Vec::new(), node: 1, victim: 1 })
    }

    fn connect_to(&mut self, node: usize) -> Result<()> {
        self.node = node;
        self.proxies.forward_to(&[self.cluster.address(node)])
    }

    async fn channel(&self) -> Result<(Connection, Channel)> {
        let url = self.cluster.url(self.node);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.context("connecting")?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }

    async fn declare(&self) -> Result<()> {
        let (_connection, channel) = self.channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let name = self.name.as_str();
        channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), durable, quorum).await?;
        bind(&channel, name).await
    }

    /// Nacks everything from now on: the queue may hold one message only and refuses the others.
    async fn set_limit(&self) -> Result<()> {
        let body = json!({
            "pattern": format!("^{}$", self.name), "apply-to": "queues",
            "definition": { "max-length": 1, "overflow": "reject-publish" },
        });
        let reply = self.policy(reqwest::Method::PUT).json(&body).send().await?;
        ensure!(reply.status().is_success(), "setting a policy: {}", reply.text().await?);
        Ok(())
    }

    async fn clear_limit(&self) -> Result<()> {
        let reply = self.policy(reqwest::Method::DELETE).send().await?;
        ensure!(reply.status().is_success(), "clearing a policy: {}", reply.text().await?);
        Ok(())
    }

    fn policy(&self, method: reqwest::Method) -> reqwest::RequestBuilder {
        let url = format!("{}/api/policies/%2f/{}", self.cluster.management_url(self.node), self.name);
        reqwest::Client::new().request(method, url).basic_auth("guest", Some("guest"))
    }

    /// Takes everything out, in the queue's order.
    async fn take_all(&self) -> Result<Vec<Delivered>> {
        let (_connection, channel) = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let found = channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default()).await?;
        let count = usize::try_from(found.message_count())?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let queue = self.name.as_str().into();
        let mut consumer = channel.basic_consume(queue, "reader".into(), options, FieldTable::default()).await?;
        let mut taken = Vec::with_capacity(count);
        // The count may be a moment old: the end is when nothing more comes.
        loop {
            let patience = Duration::from_secs(if taken.len() < count { 30 } else { 1 });
            match tokio::time::timeout(patience, consumer.next()).await {
                Ok(Some(message)) => taken.push(delivered(&message?)?),
                Ok(None) => break,
                Err(_) => {
                    ensure!(taken.len() >= count, "{} of {count} messages came", taken.len());
                    break;
                }
            }
        }
        channel.basic_cancel("reader".into(), BasicCancelOptions::default()).await?;
        Ok(taken)
    }
}

async fn bind(channel: &Channel, name: &str) -> Result<()> {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(name.into(), name.into(), "#".into(), options, none).await.context("binding")
}

fn delivered(message: &lapin::message::Delivery) -> Result<Delivered> {
    let headers = message.properties.headers().as_ref().context("headers")?;
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
        other => bail!("{name} is {other:?}"),
    };
    Ok(Delivered {
        offset: text(BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: text("cloudEvents_subject")?,
        generation: text(BRIDGE_GENERATION)?.parse()?,
        bytes: format!("{:?}{:?}", message.properties, message.data).into_bytes(),
    })
}

#[async_trait(?Send)]
impl Destination for RabbitQueue {
    async fn prepare(&mut self, cell: &Cell) -> Result<()> {
        self.name = fresh_name();
        self.taken.clear();
        self.proxies.heal()?;
        self.declare().await?;
        if cell.fault == Fault::BrokerKilled {
            // RabbitMQ 4.0 writes a new quorum queue's name to disk minutes later, or when it stops: killed before, it does
            // not find the queue's data again.
            self.cluster.stop().await?;
            self.cluster.start_again().await?;
        }
        self.proxies.slow_down()
    }

    fn section(&self) -> String {
        let (address, name) = (&self.proxies.addresses()[0], &self.name);
        format!("rabbitmq: {{ url: \"amqp://guest:guest@{address}/%2f\", exchange: {name}, queue: {name} }}")
    }

    fn promises(&self) -> Promises {
        Promises { lane: Lane::Entity, window: 1_000, is_fenced: true }
    }

    async fn read(&mut self) -> Result<Vec<Delivered>> {
        let taken = self.take_all().await?;
        self.taken.extend(taken);
        Ok(self.taken.clone())
    }

    async fn harm(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        if self.proxies.harm(fault, random).await? {
            return Ok(());
        }
        self.victim = self.node;
        match fault {
            Fault::BrokerKilled => {
                self.cluster.node(self.victim).kill9().await?;
                // What a load balancer does.
                let next = (self.victim + random.random_range(0..self.nodes)) % self.nodes + 1;
                self.connect_to(if next == self.victim { self.victim % self.nodes + 1 } else { next })
            }
            Fault::BrokerFrozen => self.cluster.node(self.victim).pause(),
            Fault::Refusing => self.set_limit().await,
            Fault::Removed => {
                let (_connection, channel) = self.channel().await?;
                let name = self.name.as_str();
                channel.queue_unbind(name.into(), name.into(), "#".into(), FieldTable::default()).await?;
                Ok(())
            }
            _ => bail!("a queue has no fault \"{fault}\""),
        }
    }

    async fn heal(&mut self, fault: Fault) -> Result<()> {
        self.proxies.heal()?;
        match fault {
            Fault::BrokerKilled => self.cluster.node(self.victim).start_again().await,
            Fault::BrokerFrozen => self.cluster.node(self.victim).resume(),
            Fault::Refusing => self.clear_limit().await,
            Fault::Removed => {
                let (_connection, channel) = self.channel().await?;
                bind(&channel, &self.name).await
            }
            _ => Ok(()),
        }
    }

    fn is_stopped_by(&self, fault: Fault) -> bool {
        self.nodes == 1 || fault != Fault::BrokerKilled
    }

    fn is_emptied_when_removed(&self) -> bool {
        false
    }
}
