use tokio::sync::mpsc;

use crate::{Lease, Message};

/// What a session has to publish, in order. It ends (`None`) when the driver stops the session or the lease is lost:
/// then the session finishes what is in flight, within its limits, and returns `Ok`.
#[derive(Debug)]
pub struct Feed {
    messages: mpsc::Receiver<Message>,
    lease: Lease,
    /// A message was given up because the lease was not held: none after it may go out, or an acknowledgement of a later
    /// one would cover it.
    is_over: bool,
}

/// The driver's end of a feed.
#[derive(Debug, Clone)]
pub struct FeedSender {
    messages: mpsc::Sender<Message>,
}

/// A feed that holds at most `capacity` messages that were not yet taken. The driver bounds their bytes.
pub fn feed(capacity: usize, lease: Lease) -> (FeedSender, Feed) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (FeedSender { messages: sender }, Feed { messages: receiver, lease, is_over: false })
}

impl Feed {
    /// The next message, or `None` at the end. Cancel safe. Everything offered may be sent at once: the driver holds back
    /// what must wait (DESIGN section 7, prefix rule).
    pub async fn next(&mut self) -> Option<Message> {
        if self.is_over {
            return None;
        }
        let message = self.messages.recv().await?;
        self.if_held(message)
    }

    /// The next message if one is there now; `None` says nothing about the end.
    pub fn try_next(&mut self) -> Option<Message> {
        if self.is_over {
            return None;
        }
        let message = self.messages.try_recv().ok()?;
        self.if_held(message)
    }

    fn if_held(&mut self, message: Message) -> Option<Message> {
        if self.lease.is_held() {
            return Some(message);
        }
        self.is_over = true;
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use uuid::Uuid;

    use super::*;
    use crate::{EntityRef, EventType, MessageId, Offset};

    fn message(offset: u64) -> Message {
        Message {
            id: MessageId { log_id: Uuid::nil(), generation: 1, offset: Offset::new(offset) },
            entity_ref: EntityRef::parse("component:default/a").expect("a ref"),
            event_type: EventType::Added,
            attributes: Vec::new(),
            content_type: "application/json",
            body: "{}".into(),
            is_reference: false,
        }
    }

    fn next_now(feed: &mut Feed) -> Option<Message> {
        match pin!(feed.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => next,
            Poll::Pending => panic!("nothing is there, and it is not the end"),
        }
    }

    #[test]
    fn a_feed_without_its_lease_is_over() {
        let asks: [fn(&mut Feed) -> Option<Message>; 2] = [Feed::try_next, next_now];
        for ask in asks {
            let lease = Lease::unlimited();
            let (sender, mut feed) = feed(3, lease.clone());
            for offset in 1..=3 {
                assert!(sender.try_offer(message(offset)).is_ok());
            }
            assert_eq!(ask(&mut feed).map(|message| message.offset()), Some(Offset::new(1)));

            lease.end();

            assert!(ask(&mut feed).is_none());
            assert!(!sender.is_open(), "the driver learns of the end");
            assert!(feed.try_next().is_none() && next_now(&mut feed).is_none(), "what is left stays back");
        }
    }
}
