use tokio::sync::mpsc;

use crate::Offset;

/// What a session tells the driver.
#[derive(Debug, Clone, PartialEq)]
pub enum Ack {
    /// Every offered message up to this offset is durably stored.
    UpTo(Offset),
    /// This one message is durably stored.
    One(Offset),
    /// Everything up to this offset was already there (found in the destination's tail); not counted as delivered now.
    AlreadyStored(Offset),
    /// Keep this for the next `Claim` (JSON, at most 4 KiB); stored with the next checkpoint.
    Remember(serde_json::Value),
    /// The destination accepts nothing for now and says why (RabbitMQ's `connection.blocked`); `None` when it does again.
    Stalled(Option<String>),
    /// Everything that was sent is answered: nothing of it may still land.
    Settled,
}

/// The session's end. Cheap to clone; may be used from any thread. What it sends is bounded by what was offered.
#[derive(Debug, Clone)]
pub struct Acks {
    sender: mpsc::UnboundedSender<Ack>,
}

/// The driver's end.
#[derive(Debug)]
pub struct AckReceiver {
    receiver: mpsc::UnboundedReceiver<Ack>,
}

impl Acks {
    /// A connected pair.
    pub fn channel() -> (Acks, AckReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Acks { sender }, AckReceiver { receiver })
    }

    /// Every offered message up to and with `offset` is durably stored.
    pub fn up_to(&self, offset: Offset) {
        self.send(Ack::UpTo(offset));
    }

    /// The message with this offset is durably stored.
    pub fn one(&self, offset: Offset) {
        self.send(Ack::One(offset));
    }

    /// Everything up to `offset` was found in the destination.
    pub fn already_stored(&self, offset: Offset) {
        self.send(Ack::AlreadyStored(offset));
    }

    /// Hands back what the connector must keep; at most 4 KiB of JSON.
    pub fn remember(&self, state: serde_json::Value) {
        self.send(Ack::Remember(state));
    }

    /// Says that the destination accepts nothing for now, or (with `None`) that it does again.
    pub fn stalled(&self, reason: Option<String>) {
        self.send(Ack::Stalled(reason));
    }

    /// Said last by a session that fails: each request that it sent was answered for good, so that none may still land. The
    /// driver then opens the next session without waiting for `Limits::flight`.
    pub fn settled(&self) {
        self.send(Ack::Settled);
    }

    fn send(&self, ack: Ack) {
        // The driver gone means that the process stops: the checkpoint then simply stays where it was.
        let _ = self.sender.send(ack);
    }
}

impl AckReceiver {
    /// The next report; `None` when every `Acks` was dropped. Cancel safe.
    pub async fn next(&mut self) -> Option<Ack> {
        self.receiver.recv().await
    }

    /// The next report if one is there.
    pub fn try_next(&mut self) -> Option<Ack> {
        self.receiver.try_recv().ok()
    }
}
