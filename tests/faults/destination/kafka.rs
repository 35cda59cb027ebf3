//! A Kafka topic of four partitions, behind one proxy for each broker.

use anyhow::{Result, bail};
use async_trait::async_trait;
use catalog_bridge_history::{Delivered, Lane};
use catalog_bridge_services::{Kafka, KafkaOptions};
use rand::Rng;
use rand::rngs::StdRng;

use super::proxies::Proxies;
use super::{Destination, fresh_name};
use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::{Cell, Kind};
use crate::support::{kafka, wait_until};

const PARTITIONS: i32 = 4;

/// A cluster, and the topic of the cell that runs.
pub(crate) struct KafkaTopic {
    cluster: Kafka,
    nodes: usize,
    proxies: Proxies,
    broker: kafka::Broker,
    topic: String,
    is_transactional: bool,
    /// The node that is killed or frozen; of a single one, all.
    victim: usize,
}

impl KafkaTopic {
    pub(crate) async fn start(nodes: usize) -> Result<Self> {
        let proxies = Proxies::reserve(nodes)?;
        let options = KafkaOptions { nodes, advertised: proxies.addresses(), ..KafkaOptions::default() };
        let cluster = Kafka::start(options).await?;
        let targets: Vec<String> = (1..=nodes).map(|id| cluster.address(id)).collect();
        proxies.forward_to(&targets)?;
        let broker = kafka::Broker::at(cluster.bootstrap());
        Ok(KafkaTopic { cluster, nodes, proxies, broker, topic: String::new(), is_transactional: false, victim: 1 })
    }

    async fn create(&self) -> Result<()> {
        // A cluster that has just begun, or a topic that is being deleted, refuses for a while.
        wait_until("the topic is created", async || {
            self.broker.create_topic_named(&self.topic, PARTITIONS, &[]).await.map(|()| true)
        })
        .await
    }
}

#[async_trait(?Send)]
impl Destination for KafkaTopic {
    async fn prepare(&mut self, cell: &Cell) -> Result<()> {
        self.is_transactional = cell.kind == Kind::KafkaTransactional;
        self.topic = fresh_name();
        self.proxies.heal()?;
        self.create().await?;
        self.proxies.slow_down()
    }

    fn section(&self) -> String {
        let brokers: Vec<String> = self.proxies.addresses().iter().map(|address| format!("{address:?}")).collect();
        let delivery = if self.is_transactional { "transactional" } else { "idempotent" };
        format!("kafka: {{ brokers: [{}], topic: {}, delivery: {delivery} }}", brokers.join(", "), self.topic)
    }

    fn promises(&self) -> Promises {
        let window = if self.is_transactional { 0 } else { 20_000 };
        Promises { lane: Lane::Entity, window, is_fenced: self.is_transactional }
    }

    async fn read(&mut self) -> Result<Vec<Delivered>> {
        self.proxies.heal()?;
        self.broker.read_all(&self.topic).await
    }

    async fn harm(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        if self.proxies.harm(fault, random).await? {
            return Ok(());
        }
        self.victim = random.random_range(1..=self.nodes);
        match fault {
            Fault::BrokerKilled => self.cluster.node(self.victim).kill9().await,
            Fault::BrokerFrozen => self.cluster.node(self.victim).pause(),
            // More replicas than there are: NOT_ENOUGH_REPLICAS.
            Fault::Refusing => {
                self.broker.set_topic(&self.topic, "min.insync.replicas", &(self.nodes + 1).to_string()).await
            }
            Fault::Removed => self.broker.delete_topic(&self.topic).await,
            _ => bail!("a topic has no fault \"{fault}\""),
        }
    }

    async fn heal(&mut self, fault: Fault) -> Result<()> {
        self.proxies.heal()?;
        match fault {
            Fault::BrokerKilled => self.cluster.node(self.victim).start_again().await,
            Fault::BrokerFrozen => self.cluster.node(self.victim).resume(),
            Fault::Refusing => {
                self.broker.set_topic(&self.topic, "min.insync.replicas", &self.nodes.min(2).to_string()).await
            }
            Fault::Removed => self.create().await,
            _ => Ok(()),
        }
    }

    fn is_stopped_by(&self, fault: Fault) -> bool {
        self.nodes == 1 || !matches!(fault, Fault::BrokerKilled | Fault::BrokerFrozen)
    }

    fn is_emptied_when_removed(&self) -> bool {
        true
    }
}
