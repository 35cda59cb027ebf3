//! The sink under the kit, through a proxy that harms its connections.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_api::{Connector, Ordering};
use catalog_bridge_conformance::{Delivered, Destination, Harm, Patient, Promises, judge};
use catalog_bridge_services::{Direction, FaultProxy};
use tokio::sync::Mutex;

use crate::broker::{build_for, fresh, section, shared, take_all};

struct Queues;

struct OneQueue {
    address: String,
    name: String,
    proxy: FaultProxy,
    /// Taken out of the queue so far: reading must not reorder what is left.
    taken: Mutex<Vec<Delivered>>,
}

#[async_trait]
impl Patient for Queues {
    fn promises(&self) -> Promises {
        Promises { exactly_once: false, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        let address = shared().await?.address(1);
        let proxy = FaultProxy::start(&address)?;
        let queue = OneQueue { address, name: fresh("kit"), proxy, taken: Mutex::default() };
        // So that `check` finds an exchange and a queue.
        let (_connection, channel) = crate::broker::channel(&queue.address).await?;
        crate::broker::declare(&channel, &queue.name, &[("x-queue-type", quorum())]).await?;
        crate::broker::bind(&channel, &queue.name, "#").await?;
        Ok(Arc::new(queue))
    }
}

fn quorum() -> lapin::types::AMQPValue {
    lapin::types::AMQPValue::LongString("quorum".into())
}

#[async_trait]
impl Destination for OneQueue {
    fn connector(&self, ordering: Ordering) -> Result<Box<dyn Connector>> {
        build_for(section(&self.proxy.address(), &self.name), false, ordering)
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        let mut taken = self.taken.lock().await;
        taken.extend(take_all(&self.address, &self.name).await?);
        Ok(taken.clone())
    }

    async fn harm(&self, harm: Harm) -> Result<bool> {
        match harm {
            Harm::Cut => self.proxy.reset_connections()?,
            Harm::LoseAnswers => {
                self.proxy.drop_data(Direction::ToClient)?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.proxy.heal()?;
            }
            // `nacks_lose_and_reorder_nothing` does it on a queue that refuses.
            Harm::Nack => return Ok(false),
        }
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rabbitmq_sink_conforms() {
    judge(&Queues).await.assert_all_held();
}
