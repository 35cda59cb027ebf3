//! One life of a client that sends.
//!
//! Keeps P5: of an entity one message is under way (the driver's key gate), whichever of them fails goes again, and the next one
//! of its entity comes only after its acknowledgement. Keeps P6: acknowledged is what the service's answer lists as stored.
//! Keeps P9 as far as the service can: the lease is looked at before each request, and a request ends after five seconds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use catalog_bridge_api::{Acks, Claim, ConnectorError, Feed, Message, Ordering, Session};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::client::Client;
use crate::config::Config;
use crate::entry::entry;
use crate::errors::{Failure, Verdict};
use crate::outgoing::{Item, Outgoing};

/// How often the lease is looked at while nothing else happens.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What became of a request.
type Answer = (Vec<Item>, Result<SendMessageBatchOutput, Failure>);

/// A session; dropped, its requests are given up.
pub(crate) struct SqsSession {
    client: Arc<Client>,
    ordering: Ordering,
    bytes_max: usize,
    /// What is known of the queue, for the next session.
    state: serde_json::Value,
    outgoing: Outgoing,
    requests: JoinSet<Answer>,
    /// Nothing more is sent; the answers to what is under way are still read.
    failed: Option<ConnectorError>,
    /// A request failed without the service's word that it takes it never.
    may_land: bool,
}

impl SqsSession {
    pub(crate) fn new(client: Client, config: &Config, claim: &Claim, state: serde_json::Value) -> Self {
        SqsSession {
            client: Arc::new(client),
            ordering: claim.ordering,
            bytes_max: config.message_bytes_max,
            state,
            outgoing: Outgoing::new(config.message_bytes_max),
            requests: JoinSet::new(),
            failed: None,
            may_land: false,
        }
    }

    /// Sends until the feed ends or something fails; without the lease it returns at once.
    async fn publish(&mut self, feed: &mut Feed, acks: &Acks) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut is_over = false;
        while feed.lease().is_held() {
            self.send_what_is_due();
            let has_work = !self.requests.is_empty() || (self.failed.is_none() && !self.outgoing.is_empty());
            if !has_work && (is_over || self.failed.is_some()) {
                return;
            }
            let wants_more = self.failed.is_none() && !is_over && self.outgoing.has_room();
            let wakes_at = self.outgoing.wakes_at(self.requests.len()).filter(|_| self.failed.is_none());
            tokio::select! {
                biased;
                Some(answer) = self.requests.join_next() => self.settle(answer, acks),
                message = feed.next(), if wants_more => {
                    is_over = message.is_none();
                    let mut next = message;
                    while let Some(message) = next {
                        self.take(message);
                        let has_room = self.failed.is_none() && self.outgoing.has_room();
                        next = if has_room { feed.try_next() } else { None };
                    }
                }
                () = wait_until(wakes_at) => {}
                _ = look.tick() => {}
            }
        }
    }

    fn take(&mut self, message: Message) {
        let (offset, entity_ref) = (message.offset(), message.entity_ref.clone());
        match entry(&message, self.ordering, self.bytes_max) {
            Ok((entry, bytes)) => self.outgoing.push(Item::new(entry, bytes, offset, entity_ref), Instant::now()),
            Err(reason) => {
                let endpoint = self.client.endpoint.clone();
                self.fail(ConnectorError::Refused { offset, entity_ref, endpoint, reason });
            }
        }
    }

    fn send_what_is_due(&mut self) {
        while self.failed.is_none()
            && let Some(items) = self.outgoing.next_request(Instant::now(), self.requests.len())
        {
            let client = Arc::clone(&self.client);
            self.requests.spawn(async move {
                let entries = items.iter().map(|item| item.entry.clone()).collect();
                let request = client.sqs.send_message_batch().queue_url(&client.queue_url).set_entries(Some(entries));
                let outcome = request.send().await.map_err(|error| Failure::of(&error));
                (items, outcome)
            });
        }
    }

    fn settle(&mut self, answer: Result<Answer, JoinError>, acks: &Acks) {
        match answer {
            Ok((items, Ok(output))) => self.settle_each(items, &output, acks),
            Ok((items, Err(failure))) => self.settle_whole(items, failure),
            Err(error) => {
                self.may_land = true;
                self.fail(ConnectorError::transient("send", &*self.client.endpoint, error));
            }
        }
    }

    /// The service answered: some may be stored and others not.
    fn settle_each(&mut self, items: Vec<Item>, output: &SendMessageBatchOutput, acks: &Acks) {
        let mut congestion = false;
        for item in items {
            if output.successful().iter().any(|stored| stored.id() == item.entry.id()) {
                acks.one(item.offset);
                continue;
            }
            let failed = output.failed().iter().find(|failed| failed.id() == item.entry.id());
            let failure = match failed {
                Some(failed) => Failure::of_entry(failed.code(), failed.message(), failed.sender_fault()),
                None => Failure { verdict: Verdict::Passing, words: "the answer does not mention it".to_owned() },
            };
            congestion |= failure.verdict == Verdict::Congested;
            self.settle_failed(item, failure);
        }
        match congestion {
            true => self.outgoing.congested(),
            false => self.outgoing.succeeded(),
        }
    }

    /// Nothing of it is stored, or it is unknown what is: the deduplication ids tell when it goes again.
    fn settle_whole(&mut self, mut items: Vec<Item>, failure: Failure) {
        if failure.verdict == Verdict::Congested {
            self.outgoing.congested();
        }
        if failure.verdict == Verdict::Refused && items.len() > 1 {
            self.outgoing.separate(items, Instant::now());
            return;
        }
        items.drain(..).for_each(|item| self.settle_failed(item, failure.clone()));
    }

    fn settle_failed(&mut self, item: Item, failure: Failure) {
        let endpoint = self.client.endpoint.clone();
        self.may_land |= failure.verdict != Verdict::Refused;
        let error = match failure.verdict {
            Verdict::Passing | Verdict::Congested => {
                let Err(item) = self.outgoing.retry(item, Instant::now(), rand::random()) else { return };
                let words = format!("offset {}: {}", item.offset, failure.words);
                ConnectorError::transient("send", endpoint, words)
            }
            Verdict::Refused => ConnectorError::Refused {
                offset: item.offset,
                entity_ref: item.entity_ref,
                endpoint,
                reason: failure.words,
            },
            Verdict::Missing | Verdict::Misconfigured => failure.into_error("send", &endpoint),
        };
        self.fail(error);
    }

    /// Keeps the error that tells most: what an operator must change, else the first refused event.
    fn fail(&mut self, error: ConnectorError) {
        let is_telling = match (&self.failed, &error) {
            (None, _) => true,
            (Some(ConnectorError::Misconfigured { .. }), _) => false,
            (Some(ConnectorError::Refused { offset: first, .. }), ConnectorError::Refused { offset, .. }) => {
                offset < first
            }
            (Some(ConnectorError::Refused { .. }), error) => matches!(error, ConnectorError::Misconfigured { .. }),
            (Some(_), error) => !matches!(error, ConnectorError::Transient { .. }),
        };
        if is_telling {
            self.failed = Some(error);
        }
    }
}

#[async_trait]
impl Session for SqsSession {
    async fn run(mut self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        acks.remember(std::mem::take(&mut self.state));
        self.publish(&mut feed, &acks).await;
        if self.requests.is_empty() && !self.may_land {
            acks.settled();
        }
        self.requests.shutdown().await;
        self.failed.take().map_or(Ok(()), Err)
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
