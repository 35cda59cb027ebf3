//! A destination in memory whose faults are scripted or random; real protocols are tested with real servers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    Acks, CheckReport, Claim, Connector, ConnectorError, Encoding, Feed, Limits, Message, Offset, Session,
};
use catalog_bridge_history::Delivered;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What one session does.
#[derive(Debug, Clone)]
pub(super) enum Behaviour {
    /// Stores and acknowledges everything.
    Works,
    /// The same, and says of a refused message that nothing of what was sent may still land.
    Settles,
    /// Cannot be opened.
    Unopened(Fault),
    /// Stores so many messages, acknowledges fewer, then fails.
    FailsAfter { stored: usize, acknowledged: usize, fault: Fault },
    /// Panics at the first message.
    Panics,
    /// Takes messages and never answers.
    Hangs,
    /// Stores and acknowledges in random order and fails at a random place.
    Random { seed: u64 },
}

#[derive(Debug, Clone)]
pub(super) enum Fault {
    Transient,
    Misconfigured,
    Diverged,
    Fenced,
    AheadOfLog(u64),
    TailLost(u64),
}

impl Fault {
    fn error(&self) -> ConnectorError {
        let endpoint = "memory".to_owned();
        match self {
            Fault::Transient => ConnectorError::transient("publish", endpoint, "scripted"),
            Fault::Misconfigured => ConnectorError::misconfigured(endpoint, "no such topic"),
            Fault::Diverged => ConnectorError::Diverged { endpoint, reason: "a foreign message".to_owned() },
            Fault::Fenced => ConnectorError::Fenced { endpoint, reason: "a newer producer".to_owned() },
            Fault::TailLost(kept) => {
                ConnectorError::TailLost { endpoint, kept: (*kept).into(), reason: "scripted".to_owned() }
            }
            Fault::AheadOfLog(tail) => ConnectorError::AheadOfLog { endpoint, tail: (*tail).into() },
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) messages: Vec<Delivered>,
    pub(super) claims: Vec<Claim>,
    pub(super) running: usize,
    pub(super) running_max: usize,
}

/// The destination and its connector. Cheap to clone.
#[derive(Clone)]
pub(super) struct Broker {
    stored: Arc<Mutex<Stored>>,
    pub(super) refused: Arc<Mutex<BTreeSet<u64>>>,
    behave: Arc<dyn Fn(usize) -> Behaviour + Send + Sync>,
    pub(super) limits: Limits,
}

impl Broker {
    /// `behave` tells what the nth session (from 0) does.
    pub(super) fn new(behave: impl Fn(usize) -> Behaviour + Send + Sync + 'static) -> Self {
        Broker {
            stored: Arc::default(),
            refused: Arc::default(),
            behave: Arc::new(behave),
            limits: Limits {
                message_bytes_max: None,
                prefix_safe: true,
                window_events: 16,
                window_bytes: 1024 * 1024,
                flight: Duration::ZERO,
                encoding: Encoding::Cloudevents,
            },
        }
    }

    pub(super) fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn offsets(&self) -> Vec<u64> {
        self.stored().messages.iter().map(|message| message.offset.get()).collect()
    }

    fn store(&self, message: &Message) {
        self.stored().messages.push(Delivered {
            offset: message.offset(),
            key: message.entity_ref.to_string(),
            generation: message.id.generation,
            bytes: message.body.to_vec(),
        });
    }

    fn refuse(&self, message: &Message) -> Result<(), ConnectorError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if !refused.contains(&message.offset().get()) {
            return Ok(());
        }
        Err(ConnectorError::Refused {
            offset: message.offset(),
            entity_ref: message.entity_ref.clone(),
            endpoint: "memory".to_owned(),
            reason: "scripted".to_owned(),
        })
    }
}

#[async_trait]
impl Connector for Broker {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn destination(&self) -> String {
        "memory".to_owned()
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        Ok(CheckReport::default())
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let number = self.stored().claims.len();
        self.stored().claims.push(claim.clone());
        let behaviour = (self.behave)(number);
        if let Behaviour::Unopened(fault) = &behaviour {
            return Err(fault.error());
        }
        Ok(Box::new(MemorySession { broker: self.clone(), behaviour }))
    }
}

struct MemorySession {
    broker: Broker,
    behaviour: Behaviour,
}

/// Counts sessions that run at once.
struct Running(Broker);

impl Running {
    fn new(broker: &Broker) -> Self {
        let mut stored = broker.stored();
        stored.running += 1;
        stored.running_max = stored.running_max.max(stored.running);
        drop(stored);
        Running(broker.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stored().running -= 1;
    }
}

#[async_trait]
impl Session for MemorySession {
    async fn run(self: Box<Self>, feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        let _running = Running::new(&self.broker);
        match self.behaviour.clone() {
            Behaviour::Random { seed } => self.run_at_random(seed, feed, acks).await,
            behaviour => self.run_scripted(&behaviour, feed, acks).await,
        }
    }
}

impl MemorySession {
    async fn run_scripted(&self, behaviour: &Behaviour, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        let mut count = 0;
        while let Some(message) = feed.next().await {
            match behaviour {
                Behaviour::Panics => panic!("scripted"),
                Behaviour::Hangs => std::future::pending().await,
                _ => {}
            }
            if let Err(refused) = self.broker.refuse(&message) {
                if matches!(behaviour, Behaviour::Settles) {
                    acks.settled();
                }
                return Err(refused);
            }
            let (stored, acknowledged) = match behaviour {
                Behaviour::FailsAfter { stored, acknowledged, .. } => (*stored, *acknowledged),
                _ => (usize::MAX, usize::MAX),
            };
            if count < stored {
                self.broker.store(&message);
            }
            count += 1;
            if count <= acknowledged {
                acks.up_to(message.offset());
            }
            if let Behaviour::FailsAfter { fault, .. } = behaviour
                && count >= stored
            {
                return Err(fault.error());
            }
        }
        Ok(())
    }

    async fn run_at_random(&self, seed: u64, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut pending: Vec<Message> = Vec::new();
        let mut unanswered: Vec<Offset> = Vec::new();
        let steps = random.random_range(1..200);
        for _ in 0..steps {
            match random.random_range(0..10) {
                0..4 => pending.extend(feed.try_next()),
                4..7 if !pending.is_empty() => {
                    // What is prefix safe stores in the order in which it was sent, anything else in any order.
                    let last = if self.broker.limits.prefix_safe { 1 } else { pending.len() };
                    let message = pending.remove(random.random_range(0..last));
                    self.broker.refuse(&message)?;
                    self.broker.store(&message);
                    unanswered.push(message.offset());
                }
                7..9 if !unanswered.is_empty() => {
                    acks.one(unanswered.swap_remove(random.random_range(0..unanswered.len())));
                }
                _ => tokio::time::sleep(Duration::from_micros(random.random_range(0..500))).await,
            }
        }
        // The connection breaks: some of what is under way still lands, and no answer comes any more.
        if self.broker.limits.prefix_safe {
            pending.truncate(random.random_range(0..=pending.len()));
        } else {
            pending.retain(|_| random.random());
        }
        for message in &pending {
            if self.broker.refuse(message).is_ok() {
                self.broker.store(message);
            }
        }
        Err(Fault::Transient.error())
    }
}
