//! The sink under the kit in both deliveries, through a proxy that harms the broker's connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_api::{Connector, Ordering};
use catalog_bridge_conformance::{Delivered, Destination, Harm, Patient, Promises, REFUSED_BYTES, judge};
use catalog_bridge_services::{Direction, FaultProxy, Kafka, KafkaOptions};
use serde_json::json;

use crate::{sink, topic};

/// Topics of a broker whose clients all go through the proxy.
struct Topics {
    delivery: &'static str,
    bootstrap: String,
    proxy: Arc<FaultProxy>,
}

/// Two topics, as total order needs one partition and a topic has one count.
struct OneTopic {
    delivery: &'static str,
    bootstrap: String,
    proxy: Arc<FaultProxy>,
    by_entity: String,
    stream: String,
}

#[async_trait]
impl Patient for Topics {
    fn promises(&self) -> Promises {
        Promises { exactly_once: self.delivery == "transactional", stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        self.proxy.heal()?;
        Ok(Arc::new(OneTopic {
            delivery: self.delivery,
            bootstrap: self.bootstrap.clone(),
            proxy: self.proxy.clone(),
            by_entity: topic::create(&self.bootstrap, "kit", 3, &[]).await?,
            stream: topic::create(&self.bootstrap, "kit-stream", 1, &[]).await?,
        }))
    }
}

impl OneTopic {
    async fn read(&self) -> Result<Vec<topic::Record>> {
        let mut records = topic::read(&self.bootstrap, &self.by_entity).await?;
        records.extend(topic::read(&self.bootstrap, &self.stream).await?);
        Ok(records)
    }
}

#[async_trait]
impl Destination for OneTopic {
    fn connector(&self, ordering: Ordering) -> Result<Box<dyn Connector>> {
        let topic = if ordering == Ordering::Stream { &self.stream } else { &self.by_entity };
        let settings = json!({ "delivery": self.delivery });
        Ok(sink::connector_with(&self.bootstrap, topic, settings, ordering, false))
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        Ok(topic::delivered(&self.read().await?))
    }

    async fn harm(&self, harm: Harm) -> Result<bool> {
        match harm {
            Harm::Cut => self.proxy.reset_connections()?,
            Harm::LoseAnswers => {
                self.proxy.drop_data(Direction::ToClient)?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                // A client that never gets an answer would wait for its time-out first.
                self.proxy.reset_connections()?;
                self.proxy.heal()?;
            }
            // What a broker answers with is sent again by the client library, in order.
            Harm::Nack => return Ok(false),
        }
        Ok(true)
    }

    async fn refuse(&self) -> Result<bool> {
        let limit = (REFUSED_BYTES / 2).to_string();
        topic::set(&self.bootstrap, &self.by_entity, "max.message.bytes", &limit).await?;
        Ok(true)
    }

    async fn slow(&self) -> Result<bool> {
        self.proxy.set_latency(Duration::from_millis(50))?;
        Ok(true)
    }

    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        Ok(self.read().await?.into_iter().map(|record| record.headers).collect())
    }
}

async fn conforms(delivery: &'static str) -> Result<()> {
    let proxy = Arc::new(FaultProxy::reserve()?);
    let options = KafkaOptions { advertised: vec![proxy.address()], ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await?;
    proxy.forward_to(&kafka.address(1))?;
    judge(&Topics { delivery, bootstrap: kafka.bootstrap(), proxy }).await.assert_all_held();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_idempotent_sink_conforms() -> Result<()> {
    conforms("idempotent").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_transactional_sink_conforms() -> Result<()> {
    conforms("transactional").await
}
