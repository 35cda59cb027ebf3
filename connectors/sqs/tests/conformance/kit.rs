//! The sink under the kit: a proxy harms its connections, a stub answers as the real service would, the server stores.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{Message, MessageAttributeValue};
use catalog_bridge_api::{Connector, Ordering};
use catalog_bridge_conformance::{Delivered, Destination, Harm, Patient, Promises, judge};
use catalog_bridge_services::{Direction, FaultProxy};
use tokio::sync::Mutex;

use crate::server::{build_for, client, create, delivered, fresh, section, shared, take_all};
use crate::stub::{Call, Reply, Stub};

struct Queues;

struct OneQueue {
    client: Client,
    name: String,
    stub: Stub,
    proxy: FaultProxy,
    /// The next request fails.
    must_fail: Arc<AtomicBool>,
    /// Taken out of the queue so far.
    taken: Mutex<Vec<Message>>,
}

impl OneQueue {
    async fn take(&self) -> Result<Vec<Message>> {
        let mut taken = self.taken.lock().await;
        taken.extend(take_all(&self.client, &self.name).await?);
        Ok(taken.clone())
    }
}

#[async_trait]
impl Patient for Queues {
    fn promises(&self) -> Promises {
        Promises { exactly_once: false, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        let endpoint = shared().await?.endpoint();
        let (client, name) = (client(&endpoint), fresh("kit"));
        create(&client, &name, &[]).await?;
        let stub = Stub::start(&endpoint).await?;
        let proxy = FaultProxy::start(stub.address())?;
        let must_fail = Arc::new(AtomicBool::new(false));
        let of_script = Arc::clone(&must_fail);
        stub.script(move |call| {
            assert_fit(call);
            if call.is_send() && of_script.swap(false, Atomic::SeqCst) { failure(call) } else { Reply::Pass }
        });
        Ok(Arc::new(OneQueue { client, name, stub, proxy, must_fail, taken: Mutex::default() }))
    }
}

/// Now an entry between others, now the whole request.
fn failure(call: &Call) -> Reply {
    match call.entries().len() {
        0..=2 => Reply::Error { status: 400, code: "RequestThrottled", message: "slow down" },
        count => Reply::Entries {
            failed: vec![count / 2],
            code: "InternalError",
            message: "try it again",
            sender_fault: false,
        },
    }
}

/// What holds for every request: no more than the service takes, and no group twice.
#[track_caller]
fn assert_fit(call: &Call) {
    let groups: HashSet<_> = call.entries().iter().filter_map(|entry| entry["MessageGroupId"].as_str()).collect();
    assert_eq!(groups.len(), call.entries().len(), "a group twice in a request: {:?}", call.body);
    assert!(groups.len() <= 10, "{} entries in a request", groups.len());
    let bytes: usize = call.entries().iter().filter_map(|entry| entry["MessageBody"].as_str()).map(str::len).sum();
    assert!(bytes <= 1 << 20, "{bytes} bytes in a request");
}

#[async_trait]
impl Destination for OneQueue {
    fn connector(&self, ordering: Ordering) -> Result<Box<dyn Connector>> {
        build_for(section(&format!("http://{}", self.proxy.address()), &self.name), false, ordering)
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        self.take().await?.iter().map(delivered).collect()
    }

    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        let text = |(name, value): (&String, &MessageAttributeValue)| {
            (name.clone(), value.string_value().unwrap_or_default().to_owned())
        };
        let messages = self.take().await?;
        Ok(messages
            .iter()
            .map(|message| message.message_attributes().into_iter().flatten().map(text).collect())
            .collect())
    }

    async fn slow(&self) -> Result<bool> {
        self.proxy.set_latency(Duration::from_millis(50))?;
        Ok(true)
    }

    async fn harm(&self, harm: Harm) -> Result<bool> {
        match harm {
            Harm::Cut => self.proxy.reset_connections()?,
            Harm::LoseAnswers => {
                self.proxy.drop_data(Direction::ToClient)?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.proxy.heal()?;
            }
            Harm::Nack => self.must_fail.store(true, Atomic::SeqCst),
        }
        Ok(true)
    }

    async fn refuse(&self) -> Result<bool> {
        self.stub.script(|call| {
            let is_refused = |entry: &serde_json::Value| {
                entry["MessageGroupId"].as_str().is_some_and(|group| group.contains("/refused-"))
            };
            let places = call.entries().iter().enumerate().filter(|(_, entry)| is_refused(entry));
            let failed: Vec<usize> = places.map(|(place, _)| place).collect();
            if failed.is_empty() {
                return Reply::Pass;
            }
            Reply::Entries { failed, code: "InvalidMessageContents", message: "never", sender_fault: true }
        });
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sqs_sink_conforms() {
    judge(&Queues).await.assert_all_held();
}
