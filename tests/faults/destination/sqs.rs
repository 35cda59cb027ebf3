//! A FIFO queue of an SQS stand-in. Before it stands an HTTP stub, which says what the stand-in never does (throttling, failed
//! entries between stored ones), and before that a proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET};
use catalog_bridge_history::{Delivered, Lane};
use catalog_bridge_services::ElasticMq;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::proxies::Proxies;
use super::stub::{Call, Reply, Stub};
use super::{Destination, fresh_name};
use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::Cell;

/// A server, and the queue of the cell that runs.
pub(crate) struct FifoQueue {
    server: ElasticMq,
    stub: Stub,
    proxies: Proxies,
    client: reqwest::Client,
    queue: String,
    queue_url: String,
    taken: Vec<Delivered>,
    /// How many requests were harmed by the stub.
    refused: Arc<AtomicUsize>,
}

impl FifoQueue {
    pub(crate) async fn start() -> Result<Self> {
        let server = ElasticMq::start().await?;
        let stub = Stub::start(&server.endpoint()).await?;
        let proxies = Proxies::reserve(1)?;
        proxies.forward_to(&[stub.address().to_owned()])?;
        Ok(FifoQueue {
            server,
            stub,
            proxies,
            client: reqwest::Client::new(),
            queue: String::new(),
            queue_url: String::new(),
            taken: Vec::new(),
            refused: Arc::default(),
        })
    }

    /// One request of the tests' own, straight to the server; the stand-in asks for no signature.
    async fn ask(&self, action: &str, body: Value) -> Result<Value> {
        let request = self
            .client
            .post(self.server.endpoint())
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-target", format!("AmazonSQS.{action}"))
            .body(body.to_string());
        let reply = request.send().await?;
        let status = reply.status();
        let text = reply.text().await?;
        ensure!(status.is_success(), "{action}: {status} {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn take_all(&mut self) -> Result<()> {
        loop {
            let request = json!({
                "QueueUrl": self.queue_url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"],
            });
            let received = self.ask("ReceiveMessage", request).await?;
            let messages = received["Messages"].as_array().cloned().unwrap_or_default();
            if messages.is_empty() {
                return Ok(());
            }
            let entry = |(number, message): (usize, &Value)| json!({ "Id": number.to_string(), "ReceiptHandle": message["ReceiptHandle"] });
            let entries: Vec<Value> = messages.iter().enumerate().map(entry).collect();
            self.ask("DeleteMessageBatch", json!({ "QueueUrl": self.queue_url, "Entries": entries })).await?;
            for message in &messages {
                self.taken.push(delivered(message)?);
            }
        }
    }

    fn script(&self, mut choose: impl FnMut(&Call) -> Reply + Send + 'static) {
        let refused = self.refused.clone();
        self.stub.script(move |call| {
            let reply = if call.is_send() { choose(call) } else { Reply::Pass };
            if !matches!(reply, Reply::Pass) {
                refused.fetch_add(1, Ordering::SeqCst);
            }
            reply
        });
    }
}

/// Throttles a third of the requests, and fails some entries of another third.
fn refusals(mut random: StdRng) -> impl FnMut(&Call) -> Reply {
    move |call| match random.random_range(0..3) {
        0 => Reply::Error { status: 400, code: "ThrottlingException", message: "Rate exceeded" },
        1 => Reply::Entries {
            failed: (0..call.entries().len()).filter(|_| random.random_bool(0.5)).collect(),
            code: "InternalError",
            message: "try again",
            sender_fault: false,
        },
        _ => Reply::Pass,
    }
}

fn delivered(message: &Value) -> Result<Delivered> {
    let attribute = |name: &str| {
        message["MessageAttributes"][name]["StringValue"].as_str().with_context(|| format!("no {name} in {message}"))
    };
    let body: Value = serde_json::from_str(message["Body"].as_str().context("a body")?)?;
    Ok(Delivered {
        offset: attribute(BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: body["subject"].as_str().context("a subject")?.to_owned(),
        generation: attribute(BRIDGE_GENERATION)?.parse()?,
        bytes: format!("{body} {}", message["MessageAttributes"]).into_bytes(),
    })
}

#[async_trait(?Send)]
impl Destination for FifoQueue {
    async fn prepare(&mut self, _: &Cell) -> Result<()> {
        self.queue = format!("{}.fifo", fresh_name());
        self.taken.clear();
        self.refused = Arc::default();
        self.stub.script(|_| Reply::Pass);
        self.proxies.heal()?;
        let request = json!({ "QueueName": self.queue, "Attributes": { "FifoQueue": "true" } });
        let created = self.ask("CreateQueue", request).await?;
        self.queue_url = created["QueueUrl"].as_str().context("a URL")?.to_owned();
        self.proxies.slow_down()
    }

    fn section(&self) -> String {
        let (address, queue) = (&self.proxies.addresses()[0], &self.queue);
        format!(
            "sqs: {{ queue_url: \"http://sqs.invalid/000000000000/{queue}\", endpoint: \"http://{address}\", region: us-east-1, access_key_id: tests, secret_access_key: tests }}"
        )
    }

    /// Nothing is repeated: every fault here is over within the five minutes in which the service knows an id again.
    fn promises(&self) -> Promises {
        Promises { lane: Lane::Entity, window: 0, is_fenced: true }
    }

    async fn read(&mut self) -> Result<Vec<Delivered>> {
        self.take_all().await?;
        Ok(self.taken.clone())
    }

    async fn harm(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        if self.proxies.harm(fault, random).await? {
            return Ok(());
        }
        match fault {
            Fault::BrokerFrozen => self.server.server().pause()?,
            Fault::Refusing => self.script(refusals(StdRng::seed_from_u64(random.random()))),
            Fault::Removed => {
                self.script(|_| Reply::Error { status: 400, code: "QueueDoesNotExist", message: "no such queue" });
            }
            _ => bail!("a queue of SQS has no fault \"{fault}\""),
        }
        Ok(())
    }

    async fn heal(&mut self, fault: Fault) -> Result<()> {
        self.stub.script(|_| Reply::Pass);
        let is_bitten = !matches!(fault, Fault::Refusing | Fault::Removed) || self.refused.load(Ordering::SeqCst) > 0;
        ensure!(is_bitten, "the fault did not bite: no request was refused");
        if fault == Fault::BrokerFrozen {
            self.server.server().resume()?;
        }
        self.proxies.heal()
    }

    fn is_stopped_by(&self, fault: Fault) -> bool {
        fault != Fault::Refusing
    }

    fn is_emptied_when_removed(&self) -> bool {
        false
    }
}
