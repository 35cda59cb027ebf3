use tokio::sync::mpsc;

use crate::{Lease, Message};

/// What a session has to publish, in order. It ends (`None`) when the driver stops the session or the lease is lost:
/// then the session finishes what is in flight, within its limits, and returns `Ok`.
#[derive(Debug)]
pub struct Feed {
    messages: mpsc::Receiver<Message>,
    lease: Lease,
}

/// The driver's end of a feed.
#[derive(Debug, Clone)]
pub struct FeedSender {
    messages: mpsc::Sender<Message>,
}

/// A feed that holds at most `capacity` messages that were not yet taken. The driver bounds their bytes.
pub fn feed(capacity: usize, lease: Lease) -> (FeedSender, Feed) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (FeedSender { messages: sender }, Feed { messages: receiver, lease })
}

impl Feed {
    /// The next message, or `None` at the end. Cancel safe. Everything offered may be sent at once: the driver holds back
    /// what must wait (DESIGN section 7, prefix rule).
    pub async fn next(&mut self) -> Option<Message> {
        let message = self.messages.recv().await?;
        self.lease.is_held().then_some(message)
    }

    /// The next message if one is there now; `None` says nothing about the end.
    pub fn try_next(&mut self) -> Option<Message> {
        let message = self.messages.try_recv().ok()?;
        if self.lease.is_held() {
            return Some(message);
        }
        self.messages.close();
        None
    }

    /// The lease, for sessions that hold messages back before they send them.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl FeedSender {
    /// Offers a message; waits while the feed is full. `false` when the session is gone.
    pub async fn offer(&self, message: Message) -> bool {
        self.messages.send(message).await.is_ok()
    }

    /// Offers a message if there is room now; else (full, or the session is gone) gives it back.
    pub fn try_offer(&self, message: Message) -> Result<(), Box<Message>> {
        self.messages.try_send(message).map_err(|error| Box::new(error.into_inner()))
    }

    /// Resolves when there is room for a message, or the session is gone. Cancel safe.
    pub async fn room(&self) {
        let _ = self.messages.reserve().await;
    }

    /// False when the session dropped its end.
    pub fn is_open(&self) -> bool {
        !self.messages.is_closed()
    }

    /// Resolves when the session dropped its end.
    pub async fn closed(&self) {
        self.messages.closed().await;
    }
}
