//! One life of a connection that publishes.
//!
//! Keeps P5 with the driver's key gate (at most one unconfirmed message per entity, so nothing overtakes a nacked or lost one), P7
//! (acknowledged only after the broker's confirm of a message that was routed), P6 (the room in flight opens with what is stored, so
//! that a sink that is stopped again and again repeats next to nothing) and P9 (the lock queue of this connection; the socket is
//! shut down when the lease is lost). One task publishes: the library numbers a channel's messages under one lock and sends them
//! under another.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{Acks, Claim, ConnectorError, Feed, Lease, Message, Session};
use futures::{Stream, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use lapin::{Channel, Error, ErrorKind, Event};

use crate::config::Config;
use crate::errors::{broker_words, code, connector_error, refused_size};
use crate::in_flight::{Address, InFlight, Returned, Settled, Trouble};
use crate::link::{Link, in_time};
use crate::{publication, topology};

/// Unconfirmed messages: more slows a quorum queue down (MEASURED section 2).
pub(crate) const WINDOW_EVENTS: usize = 1_000;
/// How often the lease is looked at while nothing else happens.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the end of a session waits for the confirms of what is in flight beside what was not stored.
const REST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of the feed waits for what is in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the cause of a failure may come after its first effect.
const CAUSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How many messages are taken between two looks at everything else.
const BURST: usize = 64;
/// How many names of a template are remembered as there.
const EXCHANGES_MAX: usize = 1_000;

/// A session; its end, however it comes, shuts the connection down.
pub(crate) struct RabbitSession {
    link: Link,
    channel: Channel,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    last_error: Option<Error>,
    in_flight: InFlight,
    /// How many may be in flight: one at first, one more for each that is stored. What finds no queue or is nacked is then sent
    /// alone by every session after it, and takes no others along that would be repeated each time.
    room: usize,
    config: Arc<Config>,
    ensure: bool,
    log_id: String,
    /// Exchanges of a template that `ensure` has seen to.
    prepared: HashSet<ShortString>,
}

enum End {
    LeaseLost,
    Failed(ConnectorError),
}

impl From<ConnectorError> for End {
    fn from(error: ConnectorError) -> Self {
        End::Failed(error)
    }
}

impl RabbitSession {
    /// Connects, takes the lock, looks at the destination, and turns confirms on.
    pub(crate) async fn open(config: Arc<Config>, ensure: bool, claim: &Claim) -> Result<Self, ConnectorError> {
        let link = Link::connect(&config, format!("catalog-bridge {}", claim.sink.as_str())).await?;
        topology::lock(&link, claim).await?;
        topology::prepare(&link, &config, ensure).await?;
        let events = Box::pin(link.connection.events_listener());
        let channel = link.channel().await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        in_time("turn confirms on", &link.endpoint, confirm).await?;
        let (last_error, in_flight, prepared) = (None, InFlight::default(), HashSet::new());
        Ok(RabbitSession {
            link,
            channel,
            events,
            last_error,
            in_flight,
            room: 1,
            config,
            ensure,
            log_id: claim.log_id.to_string(),
            prepared,
        })
    }

    async fn publish(&mut self, feed: &mut Feed, acks: &Acks) -> Result<(), End> {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        loop {
            let has_room = self.in_flight.len() < self.room;
            tokio::select! {
                biased;
                settled = self.in_flight.settled() => self.settle(settled, acks).await?,
                event = self.events.next() => self.notice(event, acks)?,
                _ = look.tick() => self.look(feed.lease(), acks).await?,
                message = feed.next(), if has_room => match message {
                    Some(message) => self.send_burst(message, feed, acks).await?,
                    None => return self.drain(feed.lease(), acks).await,
                },
            }
        }
    }

    async fn send_burst(&mut self, first: Message, feed: &mut Feed, acks: &Acks) -> Result<(), End> {
        let mut next = Some(first);
        let mut burst = 0;
        while let Some(message) = next {
            self.send(message, feed.lease(), acks).await?;
            burst += 1;
            let goes_on = burst < BURST && self.in_flight.len() < self.room;
            next = if goes_on { feed.try_next() } else { None };
        }
        Ok(())
    }

    async fn send(&mut self, message: Message, lease: &Lease, acks: &Acks) -> Result<(), End> {
        let Some(exchange) = publication::exchange(&self.config.exchange, &message.entity_ref) else {
            // Nothing is wrong with what was sent before.
            self.drain(lease, acks).await?;
            return Err(End::Failed(ConnectorError::Refused {
                offset: message.offset(),
                entity_ref: message.entity_ref,
                endpoint: self.link.endpoint.clone(),
                reason: "the exchange's name would be longer than 255 bytes".to_owned(),
            }));
        };
        if self.ensure && self.config.exchange.fixed().is_none() && !self.prepared.contains(&exchange) {
            topology::prepare_one_of(&self.link, &self.config, exchange.as_str()).await?;
            ensure_held(lease)?;
            if self.prepared.len() >= EXCHANGES_MAX {
                self.prepared.clear();
            }
            self.prepared.insert(exchange.clone());
        }
        let routing_key = publication::routing_key(&self.config.routing_key, &message.entity_ref);
        let properties = publication::properties(&message, &self.log_id);
        self.in_flight.publish(&self.channel, message, Address { exchange, routing_key, properties });
        Ok(())
    }

    /// Waits for what is in flight; what is not confirmed in time is repeated by the next session.
    async fn drain(&mut self, lease: &Lease, acks: &Acks) -> Result<(), End> {
        let end = tokio::time::sleep(DRAIN_TIMEOUT);
        tokio::pin!(end);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        ensure_held(lease)?;
        while !self.in_flight.is_empty() {
            tokio::select! {
                biased;
                settled = self.in_flight.settled() => self.settle(settled, acks).await?,
                event = self.events.next() => self.notice(event, acks)?,
                _ = look.tick() => self.look(lease, acks).await?,
                () = &mut end => break,
            }
        }
        Ok(())
    }

    async fn settle(&mut self, settled: Settled, acks: &Acks) -> Result<(), End> {
        self.room = (self.room + settled.stored.len()).min(WINDOW_EVENTS);
        for offset in settled.stored {
            acks.one(offset);
        }
        match settled.trouble {
            None => Ok(()),
            Some(Trouble::Failed(error)) => Err(End::Failed(self.explain(error, acks).await)),
            Some(Trouble::Nacked(offset)) => {
                self.take_rest(acks).await;
                let words = format!(
                    "offset {offset} was not stored (basic.nack): a queue is full (overflow: reject-publish) or without a majority"
                );
                Err(End::Failed(ConnectorError::transient("publish", &*self.link.endpoint, words)))
            }
            Some(Trouble::Returned(returned)) => {
                self.take_rest(acks).await;
                let Returned { message_id, exchange, routing_key, reason } = returned;
                let reason = format!(
                    "message {message_id} found no queue ({reason}): exchange {exchange:?}, routing key {routing_key:?}; \
                     bind a queue to that exchange for that key"
                );
                Err(End::Failed(ConnectorError::misconfigured(&*self.link.endpoint, reason)))
            }
        }
    }

    /// What is in flight beside a message that was not stored: all of it that is not counted now is repeated.
    async fn take_rest(&mut self, acks: &Acks) {
        if let Ok(stored) = tokio::time::timeout(REST_TIMEOUT, self.in_flight.rest()).await {
            stored.into_iter().for_each(|offset| acks.one(offset));
        }
    }

    /// `connection.blocked` is a state and no error: the broker stops reading, and goes on when it has memory and disk again.
    fn notice(&mut self, event: Option<Event>, acks: &Acks) -> Result<(), End> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                acks.stalled(Some(format!("the broker blocks publishers: {reason}")));
            }
            Some(Event::ConnectionUnblocked) => acks.stalled(None),
            // Also of channels that only looked at something; `look` finds out whether ours is concerned.
            Some(Event::Error(error)) => self.last_error = Some(error),
            Some(_) => {}
            None => {
                let words = "the connection is closed".to_owned();
                return Err(End::Failed(ConnectorError::transient("publish", &*self.link.endpoint, words)));
            }
        }
        Ok(())
    }

    /// An idle connection that breaks has no confirm to tell it.
    async fn look(&mut self, lease: &Lease, acks: &Acks) -> Result<(), End> {
        ensure_held(lease)?;
        if self.channel.status().connected() {
            return Ok(());
        }
        let closed = || ErrorKind::IOError(Arc::new(std::io::ErrorKind::ConnectionAborted.into())).into();
        let error = self.last_error.take().unwrap_or_else(closed);
        Err(End::Failed(self.explain(error, acks).await))
    }

    /// The connector's error for a failure; the broker's words may come after the first effects of a closed channel.
    async fn explain(&mut self, first: Error, acks: &Acks) -> ConnectorError {
        let mut error = first;
        let cause = async {
            while broker_words(&error).is_none() && !self.in_flight.is_empty() {
                let settled = self.in_flight.settled().await;
                settled.stored.iter().for_each(|offset| acks.one(*offset));
                if let Some(Trouble::Failed(next)) = settled.trouble
                    && broker_words(&next).is_some()
                {
                    error = next;
                }
            }
        };
        let _ = tokio::time::timeout(CAUSE_TIMEOUT, cause).await;
        let endpoint = self.link.endpoint.clone();
        if let Some((code::PRECONDITION_FAILED, words)) = broker_words(&error)
            && let Some((offset, entity_ref)) = refused_size(words).and_then(|size| self.in_flight.first_of_size(size))
        {
            return ConnectorError::Refused { offset, entity_ref, endpoint, reason: words.to_owned() };
        }
        connector_error("publish", &endpoint, &error)
    }
}

#[async_trait]
impl Session for RabbitSession {
    async fn run(mut self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        match self.publish(&mut feed, &acks).await {
            Ok(()) if self.in_flight.is_empty() => {
                self.link.close().await;
                Ok(())
            }
            Ok(()) | Err(End::LeaseLost) => Ok(()),
            Err(End::Failed(error)) => Err(error),
        }
    }
}

fn ensure_held(lease: &Lease) -> Result<(), End> {
    if lease.is_held() { Ok(()) } else { Err(End::LeaseLost) }
}
