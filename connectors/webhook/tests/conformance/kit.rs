//! The sink under the kit, through a proxy that harms its connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET, Connector, Encoding, Ordering};
use catalog_bridge_conformance::{Delivered, Destination, Harm, Patient, Promises, judge};
use catalog_bridge_services::{Direction, FaultProxy, WebhookReceiver, WebhookReply, WebhookRequest};
use serde_json::{Value, json};

use crate::setup::{build, receiver, section_with};

struct Endpoints;

struct Endpoint {
    receiver: WebhookReceiver,
    proxy: FaultProxy,
    /// How many of the next requests are answered with 503.
    unready: Arc<AtomicUsize>,
}

#[async_trait]
impl Patient for Endpoints {
    fn promises(&self) -> Promises {
        Promises { exactly_once: false, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        let receiver = receiver()?;
        let unready = Arc::new(AtomicUsize::new(0));
        let unready_of_rule = Arc::clone(&unready);
        receiver.answer(move |_| {
            let is_ready =
                unready_of_rule.fetch_update(Atomic::SeqCst, Atomic::SeqCst, |count| count.checked_sub(1)).is_err();
            if is_ready { WebhookReply::stored() } else { WebhookReply::status(503) }
        });
        let proxy = FaultProxy::start(&receiver.address())?;
        Ok(Arc::new(Endpoint { receiver, proxy, unready }))
    }
}

#[async_trait]
impl Destination for Endpoint {
    fn connector(&self, ordering: Ordering) -> Result<Box<dyn Connector>> {
        build(section_with(&self.proxy.address(), json!({ "timeout_seconds": 60 })), ordering)
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        self.receiver.stored().iter().map(delivered).collect()
    }

    async fn harm(&self, harm: Harm) -> Result<bool> {
        match harm {
            Harm::Nack => {
                self.unready.fetch_add(1, Atomic::SeqCst);
            }
            Harm::Cut => self.proxy.reset_connections()?,
            Harm::LoseAnswers => {
                self.proxy.drop_data(Direction::ToClient)?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.proxy.heal()?;
            }
        }
        Ok(true)
    }

    async fn refuse(&self) -> Result<bool> {
        self.receiver.answer(|request| {
            let is_refused = subject(request).is_ok_and(|subject| subject.contains("/refused-"));
            if is_refused { WebhookReply::status(422) } else { WebhookReply::stored() }
        });
        Ok(true)
    }

    async fn slow(&self) -> Result<bool> {
        // In each direction.
        self.proxy.set_latency(Duration::from_millis(50))?;
        Ok(true)
    }

    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        Ok(self.receiver.stored().into_iter().map(|request| request.headers).collect())
    }
}

fn subject(request: &WebhookRequest) -> Result<String> {
    let body: Value = serde_json::from_slice(&request.body)?;
    Ok(body["subject"].as_str().context("a subject")?.to_owned())
}

fn delivered(request: &WebhookRequest) -> Result<Delivered> {
    let header = |name: &str| request.headers.get(name).with_context(|| format!("header {name}"));
    let mut headers = request.headers.clone();
    // These two are of the attempt.
    headers.retain(|name, _| name != "webhook-timestamp" && name != "webhook-signature");
    Ok(Delivered {
        offset: header(BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: subject(request)?,
        generation: header(BRIDGE_GENERATION)?.parse()?,
        bytes: [format!("{headers:?}").as_bytes(), &request.body].concat(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_sink_conforms() -> Result<()> {
    assert_eq!(Endpoints.fresh().await?.connector(Ordering::Entity)?.limits().encoding, Encoding::Cloudevents);
    judge(&Endpoints).await.assert_all_held();
    Ok(())
}
