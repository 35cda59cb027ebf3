//! A JetStream stream, behind one proxy for each server.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{self, consumer::pull, stream};
use async_trait::async_trait;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET};
use catalog_bridge_history::{Delivered, Lane};
use catalog_bridge_services::{Nats, NatsOptions};
use futures::StreamExt;
use rand::Rng;
use rand::rngs::StdRng;

use super::proxies::Proxies;
use super::{Destination, fresh_name};
use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::Cell;
use crate::support::wait_until;

/// Servers, and the stream of the cell that runs.
pub(crate) struct NatsStream {
    cluster: Nats,
    nodes: usize,
    proxies: Proxies,
    stream: String,
    victim: usize,
}

impl NatsStream {
    pub(crate) async fn start(nodes: usize) -> Result<Self> {
        let proxies = Proxies::reserve(nodes)?;
        let options = NatsOptions { nodes, advertised: proxies.addresses(), ..NatsOptions::default() };
        let cluster = Nats::start(options).await?;
        let targets: Vec<String> = (1..=nodes).map(|number| cluster.address(number)).collect();
        proxies.forward_to(&targets)?;
        Ok(NatsStream { cluster, nodes, proxies, stream: String::new(), victim: 1 })
    }

    /// By way of the servers' own addresses.
    async fn context(&self) -> Result<jetstream::Context> {
        let servers: Vec<String> =
            (1..=self.nodes).map(|number| format!("nats://{}", self.cluster.address(number))).collect();
        let options = async_nats::ConnectOptions::new().ignore_discovered_servers();
        Ok(jetstream::new(options.connect(servers).await?))
    }

    fn config(&self) -> stream::Config {
        stream::Config {
            name: self.stream.clone(),
            subjects: vec![format!("{}.>", self.stream)],
            num_replicas: self.nodes,
            ..stream::Config::default()
        }
    }

    async fn create(&self) -> Result<()> {
        let context = self.context().await?;
        // A cluster that has just begun refuses for a while.
        wait_until("the stream is created", async || Ok(context.create_stream(self.config()).await.map(|_| true)?))
            .await
    }

    /// Every message above the limit is refused; 0 is no limit.
    async fn set_limit(&self, messages: i64) -> Result<()> {
        let config = stream::Config { max_messages: messages, discard: stream::DiscardPolicy::New, ..self.config() };
        self.context().await?.update_stream(config).await?;
        Ok(())
    }
}

fn delivered(message: &jetstream::Message) -> Result<Delivered> {
    let headers = message.headers.as_ref().context("headers")?;
    let text =
        |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str).with_context(|| format!("no {name}"));
    // What ties a message to its place in the stream differs between repetitions.
    let mut alike: Vec<String> = headers
        .iter()
        .filter(|(name, _)| !name.to_string().starts_with("Nats-Expected"))
        .map(|(name, values)| format!("{name}: {values:?}"))
        .collect();
    alike.sort();
    Ok(Delivered {
        offset: text(BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: text("ce-subject")?.to_owned(),
        generation: text(BRIDGE_GENERATION)?.parse()?,
        bytes: format!("{}{alike:?}{:?}", message.subject, message.payload).into_bytes(),
    })
}

#[async_trait(?Send)]
impl Destination for NatsStream {
    async fn prepare(&mut self, _: &Cell) -> Result<()> {
        self.stream = fresh_name();
        self.proxies.heal()?;
        self.create().await?;
        self.proxies.slow_down()
    }

    fn section(&self) -> String {
        let servers: Vec<String> =
            self.proxies.addresses().iter().map(|address| format!("\"nats://{address}\"")).collect();
        let stream = &self.stream;
        let servers = servers.join(", ");
        format!(
            "nats: {{ servers: [{servers}], stream: {stream}, subject: \"{stream}.{{kind}}.{{namespace}}.{{name}}\" }}"
        )
    }

    fn promises(&self) -> Promises {
        Promises { lane: Lane::Stream, window: 0, is_fenced: true }
    }

    async fn read(&mut self) -> Result<Vec<Delivered>> {
        let mut stream = self.context().await?.get_stream(&self.stream).await?;
        let count = usize::try_from(stream.info().await?.state.messages)?;
        let mut messages = stream.create_consumer(pull::OrderedConfig::default()).await?.messages().await?;
        let mut read = Vec::with_capacity(count);
        while read.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(60), messages.next()).await;
            let message = next.with_context(|| format!("{} of {count} messages came", read.len()))?;
            read.push(delivered(&message.context("the consumer ended")??)?);
        }
        Ok(read)
    }

    async fn harm(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        if self.proxies.harm(fault, random).await? {
            return Ok(());
        }
        self.victim = random.random_range(1..=self.nodes);
        match fault {
            Fault::BrokerKilled => self.cluster.node(self.victim).kill9().await,
            Fault::BrokerFrozen => self.cluster.node(self.victim).pause(),
            Fault::Refusing => self.set_limit(1).await,
            Fault::Removed => Ok(self.context().await?.delete_stream(&self.stream).await.map(drop)?),
            _ => bail!("a stream has no fault \"{fault}\""),
        }
    }

    async fn heal(&mut self, fault: Fault) -> Result<()> {
        self.proxies.heal()?;
        match fault {
            Fault::BrokerKilled => self.cluster.node(self.victim).start_again().await,
            Fault::BrokerFrozen => self.cluster.node(self.victim).resume(),
            Fault::Refusing => self.set_limit(-1).await,
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
