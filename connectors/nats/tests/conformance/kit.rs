//! The sink under the kit, through a proxy that harms its connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_api::{Connector, Ordering};
use catalog_bridge_conformance::{Delivered, Destination, Harm, Patient, Promises, REFUSED_BYTES, judge};
use catalog_bridge_services::{Direction, FaultProxy};
use serde_json::json;

use crate::{server, sink};

struct Streams {
    url: String,
    address: String,
}

struct OneStream {
    url: String,
    name: String,
    proxy: FaultProxy,
}

#[async_trait]
impl Patient for Streams {
    fn promises(&self) -> Promises {
        Promises { exactly_once: true, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        let (url, proxy) = (self.url.clone(), FaultProxy::start(&self.address)?);
        let name = server::create(&url, "kit").await?;
        Ok(Arc::new(OneStream { url, name, proxy }))
    }
}

#[async_trait]
impl Destination for OneStream {
    fn connector(&self, _: Ordering) -> Result<Box<dyn Connector>> {
        Ok(sink::connector(&format!("nats://{}", self.proxy.address()), &self.name, json!({})))
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        Ok(server::delivered(&server::read(&self.url, &self.name).await?))
    }

    async fn harm(&self, harm: Harm) -> Result<bool> {
        match harm {
            Harm::Cut => self.proxy.reset_connections()?,
            Harm::LoseAnswers => {
                self.proxy.drop_data(Direction::ToClient)?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.proxy.heal()?;
            }
            // Nothing makes a stream that takes its subjects turn one message away.
            Harm::Nack => return Ok(false),
        }
        Ok(true)
    }

    async fn refuse(&self) -> Result<bool> {
        let jetstream = server::jetstream(&self.url).await?;
        let mut config = jetstream.get_stream(&self.name).await?.cached_info().config.clone();
        config.max_message_size = i32::try_from(REFUSED_BYTES / 2)?;
        jetstream.update_stream(config).await?;
        Ok(true)
    }

    async fn slow(&self) -> Result<bool> {
        self.proxy.set_latency(Duration::from_millis(50))?;
        Ok(true)
    }

    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        let records = server::read(&self.url, &self.name).await?;
        Ok(records.into_iter().map(|record| record.headers.into_iter().collect()).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_sink_conforms() {
    let nats = server::shared().await;
    judge(&Streams { url: nats.url(), address: nats.address(1) }).await.assert_all_held();
}
