//! One life of a session: posts, up to `max_in_flight` at once, and acknowledges what is answered with 2xx.
//!
//! Invariants: after the first failure nothing new is sent, what is in flight is waited for (`timeout_seconds` bounds it), and only
//! then the session returns. A session begins with one request alone, so that an endpoint in trouble is asked once and
//! not by a whole window.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use catalog_bridge_api::{Acks, Claim, ConnectorError, Feed, Message, Offset, Session};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::{Client, RequestBuilder, Url};
use tokio::time::MissedTickBehavior;

use crate::answer;
use crate::client::Target;
use crate::config::{Config, endpoint};
use crate::failure::{Failure, Unused, failure};
use crate::pace::Pace;
use crate::request::request;
use crate::signature::Signer;

/// How often secrets in files are read again.
const SECRETS_AGAIN: Duration = Duration::from_secs(10);

pub(crate) struct WebhookSession {
    target: Target,
    client: Client,
    config: Arc<Config>,
    pace: Arc<Pace>,
}

impl WebhookSession {
    pub(crate) fn new(
        target: Target,
        config: Arc<Config>,
        pace: Arc<Pace>,
        claim: &Claim,
    ) -> Result<Self, ConnectorError> {
        let lease = claim.lease.clone();
        // Connecting takes time: a process that was frozen meanwhile must not send.
        let admit = move || if lease.is_held() { Ok(()) } else { Err(Unused::LeaseLost) };
        let client = target.client(admit)?;
        Ok(WebhookSession { target, client, config, pace })
    }

    async fn publish(&mut self, feed: &mut Feed, acks: &Acks) -> Result<(), Failure> {
        let mut in_flight = FuturesUnordered::new();
        let mut outcome = Ok(());
        let (mut is_open, mut limit, mut may_land) = (true, 1, false);
        let mut secrets_again = tokio::time::interval(SECRETS_AGAIN);
        secrets_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        secrets_again.reset();
        let has_files = self.config.secret.as_slice().iter().any(catalog_bridge_api::Secret::is_file);
        loop {
            let end = tokio::select! {
                biased;
                Some(delivered) = in_flight.next(), if !in_flight.is_empty() => match delivered {
                    Ok(offset) => {
                        acks.one(offset);
                        limit = self.config.max_in_flight;
                        continue;
                    }
                    Err(failure) => {
                        may_land |= !matches!(failure, Failure::Failed(ConnectorError::Refused { .. }));
                        Err(failure)
                    }
                },
                _ = secrets_again.tick(), if is_open && has_files => match self.read_secrets().await {
                    Ok(()) => continue,
                    Err(failure) => Err(failure),
                },
                message = next_in_time(&self.pace, feed), if is_open && in_flight.len() < limit => match message {
                    Some(message) => {
                        self.pace.take();
                        let Target { url, signer, .. } = &self.target;
                        let request = request(&self.client, url, &message, signer, SystemTime::now());
                        in_flight.push(deliver(request, url.clone(), message));
                        continue;
                    }
                    None => Ok(()),
                },
                else => {
                    if !may_land {
                        acks.settled();
                    }
                    return outcome;
                }
            };
            is_open = false;
            outcome = outcome.and(end);
        }
    }

    async fn read_secrets(&mut self) -> Result<(), Failure> {
        let config = Arc::clone(&self.config);
        let reading = tokio::task::spawn_blocking(move || Signer::read(config.secret.as_slice()));
        let endpoint = &*self.target.endpoint;
        let read = reading.await.map_err(|error| ConnectorError::transient("read secrets", endpoint, error));
        let read = read.and_then(|read| {
            read.map_err(|reason| ConnectorError::misconfigured(endpoint, format!("secret: {reason}")))
        });
        self.target.signer = read.map_err(Failure::Failed)?;
        Ok(())
    }
}

/// Cancel safe: a message that was taken is returned.
async fn next_in_time(pace: &Pace, feed: &mut Feed) -> Option<Message> {
    pace.ready().await;
    feed.next().await
}

async fn deliver(request: RequestBuilder, url: Url, message: Message) -> Result<Offset, Failure> {
    let response = request.send().await;
    let response = response.map_err(|error| failure("post", &endpoint(&url), error))?;
    answer::judge(response, &url, &message).await.map_err(Failure::Failed)?;
    Ok(message.offset())
}

#[async_trait]
impl Session for WebhookSession {
    async fn run(mut self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        match self.publish(&mut feed, &acks).await {
            Ok(()) | Err(Failure::LeaseLost) => Ok(()),
            Err(Failure::Failed(error)) => Err(error),
        }
    }
}
