//! A receiver of webhooks, behind one proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET};
use catalog_bridge_history::{Delivered, Lane};
use catalog_bridge_services::{WebhookReceiver, WebhookReply, WebhookRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Destination;
use super::proxies::Proxies;
use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::Cell;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A receiver of each cell's own.
pub(crate) struct Hook {
    receiver: WebhookReceiver,
    proxies: Proxies,
    /// How many requests were not stored, by the fault.
    refused: Arc<AtomicUsize>,
}

impl Hook {
    pub(crate) fn start() -> Result<Self> {
        let proxies = Proxies::reserve(1)?;
        Ok(Hook { receiver: WebhookReceiver::start(&[SECRET])?, proxies, refused: Arc::default() })
    }

    /// Answers every request by what `choose` makes of a number in 0..3; `None` is stored.
    fn answer(&self, mut random: StdRng, choose: fn(u8) -> Option<WebhookReply>) {
        let refused = self.refused.clone();
        self.receiver.answer(move |_| {
            let reply = choose(random.random_range(0..3));
            if reply.is_some() {
                refused.fetch_add(1, Ordering::SeqCst);
            }
            reply.unwrap_or_else(WebhookReply::stored)
        });
    }
}

fn delivered(request: &WebhookRequest) -> Result<Delivered> {
    let text = |name: &str| request.headers.get(name).with_context(|| format!("no {name}"));
    // A new attempt has a new time and so a new signature.
    let alike =
        request.headers.iter().filter(|(name, _)| !matches!(&***name, "webhook-timestamp" | "webhook-signature"));
    let alike: Vec<_> = alike.collect();
    let body: serde_json::Value = serde_json::from_slice(&request.body)?;
    Ok(Delivered {
        offset: text(BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: body["subject"].as_str().context("a subject")?.to_owned(),
        generation: text(BRIDGE_GENERATION)?.parse()?,
        bytes: format!("{alike:?}{:?}", request.body).into_bytes(),
    })
}

#[async_trait(?Send)]
impl Destination for Hook {
    async fn prepare(&mut self, _: &Cell) -> Result<()> {
        self.receiver = WebhookReceiver::start(&[SECRET])?;
        self.refused = Arc::default();
        self.proxies.heal()?;
        self.proxies.forward_to(&[self.receiver.address()])?;
        self.proxies.slow_down()
    }

    fn section(&self) -> String {
        let address = &self.proxies.addresses()[0];
        format!(
            "webhook: {{ url: \"http://{address}/catalog\", secret: {SECRET}, allow_http: true, allow_addresses: [127.0.0.1] }}"
        )
    }

    fn promises(&self) -> Promises {
        Promises { lane: Lane::Entity, window: 1_000, is_fenced: false }
    }

    async fn read(&mut self) -> Result<Vec<Delivered>> {
        self.receiver.stored().iter().map(delivered).collect()
    }

    async fn harm(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        if self.proxies.harm(fault, random).await? {
            return Ok(());
        }
        let random = StdRng::seed_from_u64(random.random());
        match fault {
            Fault::BrokerFrozen => self.proxies.freeze()?,
            Fault::Refusing => self.answer(random, |chance| match chance {
                0 => Some(WebhookReply::status(503)),
                1 => Some(WebhookReply::status(429).header("retry-after", "1")),
                _ => None,
            }),
            Fault::Removed => self.answer(random, |_| Some(WebhookReply::status(404))),
            _ => bail!("a receiver has no fault \"{fault}\""),
        }
        Ok(())
    }

    async fn heal(&mut self, fault: Fault) -> Result<()> {
        self.receiver.answer(|_| WebhookReply::stored());
        let is_bitten = !matches!(fault, Fault::Refusing | Fault::Removed) || self.refused.load(Ordering::SeqCst) > 0;
        ensure!(is_bitten, "the fault did not bite: no request was refused");
        self.proxies.heal()
    }

    fn is_stopped_by(&self, fault: Fault) -> bool {
        fault != Fault::Refusing
    }

    fn is_emptied_when_removed(&self) -> bool {
        false
    }
}
