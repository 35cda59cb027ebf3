//! The destinations: how each is started, what a sink's section for it says, how it is harmed, and how it is read back.

mod file;
mod kafka;
mod nats;
mod proxies;
mod rabbitmq;
mod sqs;
#[allow(dead_code, reason = "the connector's own tests look at more of it")]
#[path = "../../../connectors/sqs/tests/conformance/stub.rs"]
mod stub;
mod webhook;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_history::Delivered;
use rand::rngs::StdRng;

use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::{Cell, Site};

/// The servers of one site. Cells use them one after the other, each with a topic, queue or stream of its own.
#[async_trait(?Send)]
pub(crate) trait Destination {
    /// Makes what the cell's sink writes to; what earlier cells wrote is forgotten.
    async fn prepare(&mut self, cell: &Cell) -> Result<()>;

    /// The sink's own keys in the config, in YAML's flow style.
    fn section(&self) -> String;

    /// What the sink promises.
    fn promises(&self) -> Promises;

    /// Everything that was delivered since [`prepare`](Self::prepare). Nobody writes meanwhile.
    async fn read(&mut self) -> Result<Vec<Delivered>>;

    /// Begins a fault of which the destination is the victim.
    async fn harm(&mut self, fault: Fault, random: &mut StdRng) -> Result<()>;

    /// Ends it.
    async fn heal(&mut self, fault: Fault) -> Result<()>;

    /// Whether nothing can be delivered while this fault lasts; a cluster goes on without one of its nodes.
    fn is_stopped_by(&self, fault: Fault) -> bool;

    /// Whether [`Fault::Removed`] takes away what was delivered before.
    fn is_emptied_when_removed(&self) -> bool;
}

/// Starts the servers.
pub(crate) async fn start(site: Site) -> Result<Box<dyn Destination>> {
    Ok(match site {
        Site::Kafka(nodes) => Box::new(kafka::KafkaTopic::start(nodes).await?),
        Site::RabbitMq(nodes) => Box::new(rabbitmq::RabbitQueue::start(nodes).await?),
        Site::Nats(nodes) => Box::new(nats::NatsStream::start(nodes).await?),
        Site::Sqs => Box::new(sqs::FifoQueue::start().await?),
        Site::Webhook => Box::new(webhook::Hook::start()?),
        Site::File => Box::new(file::LocalFile::start()?),
    })
}

/// A name that no other cell has.
fn fresh_name() -> String {
    format!("catalog-{}", uuid::Uuid::new_v4().simple())
}
