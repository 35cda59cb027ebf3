//! What was published and is not settled yet.
//!
//! Keeps P5 and P7: publish futures are polled once, in order, which numbers them and queues their frames in order (MEASURED section
//! 2); and the client library attaches a returned message to a confirm that it picks at random among those that it resolves
//! together. It attaches it no later than it resolves the returned message's own confirm, so a wake-up is complete only when
//! everything that is resolved was taken, and if one return is among it, nothing of it counts as stored.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use catalog_bridge_api::{EntityRef, Message, Offset};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Error};

type Outcome = (Offset, Result<Confirmation, Error>);
type Confirm = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Published and unconfirmed messages.
#[derive(Default)]
pub(crate) struct InFlight {
    confirms: FuturesUnordered<Confirm>,
    /// To name the one that is refused.
    sent: BTreeMap<Offset, (EntityRef, usize)>,
}

/// Where a message goes.
pub(crate) struct Address {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
}

/// What one wake-up came to.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Durably stored.
    pub(crate) stored: Vec<Offset>,
    /// Why the session cannot go on.
    pub(crate) trouble: Option<Trouble>,
}

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A message found no queue.
    Returned(Box<BasicReturnMessage>),
    /// The broker did not store this one.
    Nacked(Offset),
    /// The channel or the connection broke.
    Failed(Error),
}

impl InFlight {
    /// How many are unconfirmed.
    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Publishes without waiting: when it returns, the message is queued behind all earlier ones.
    pub(crate) fn publish(&mut self, channel: &Channel, message: Message, address: Address) {
        let offset = message.offset();
        self.sent.insert(offset, (message.entity_ref.clone(), message.body.len()));
        let channel = channel.clone();
        let mut confirm: Confirm = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let Address { exchange, routing_key, properties } = address;
            let published = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
            let outcome = match published {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (offset, outcome)
        });
        if let Poll::Ready(outcome) = confirm.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            confirm = Box::pin(ready(outcome));
        }
        self.confirms.push(confirm);
    }

    /// Everything that is resolved, as soon as something is; never while nothing is in flight. Cancel safe.
    pub(crate) async fn settled(&mut self) -> Settled {
        let batch = poll_fn(|context| match self.confirms.poll_next_unpin(context) {
            Poll::Ready(Some(first)) => Poll::Ready(self.take_resolved(first)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        });
        let batch = batch.await;
        let settled = judge(batch);
        for offset in &settled.stored {
            self.sent.remove(offset);
        }
        settled
    }

    /// The stream may also pause before it is exhausted; then it wakes its waker at once.
    fn take_resolved(&mut self, first: Outcome) -> Vec<Outcome> {
        let pause = Arc::new(Pause::default());
        let waker = Waker::from(Arc::clone(&pause));
        let mut batch = vec![first];
        loop {
            match self.confirms.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(Some(outcome)) => batch.push(outcome),
                Poll::Pending if pause.0.swap(false, Ordering::AcqRel) => {}
                Poll::Ready(None) | Poll::Pending => return batch,
            }
        }
    }

    /// The first unconfirmed message with a body of this size: the broker names the one that it refuses by its size only, and
    /// it read them in this order.
    pub(crate) fn first_of_size(&self, bytes: usize) -> Option<(Offset, EntityRef)> {
        let (offset, (entity_ref, _)) = self.sent.iter().find(|(_, (_, size))| *size == bytes)?;
        Some((*offset, entity_ref.clone()))
    }
}

#[derive(Default)]
struct Pause(AtomicBool);

impl Wake for Pause {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a complete wake-up means.
fn judge(batch: Vec<Outcome>) -> Settled {
    let mut settled = Settled::default();
    let mut returned = None;
    for (offset, outcome) in batch {
        match outcome {
            Ok(confirmation) => {
                let is_ack = confirmation.is_ack();
                match confirmation.take_message() {
                    Some(message) => returned = returned.or(Some(Trouble::Returned(Box::new(message)))),
                    None if is_ack => settled.stored.push(offset),
                    None => settled.trouble = settled.trouble.or(Some(Trouble::Nacked(offset))),
                }
            }
            Err(error) => settled.trouble = settled.trouble.or(Some(Trouble::Failed(error))),
        }
    }
    if returned.is_some() {
        settled = Settled { stored: Vec::new(), trouble: returned };
    }
    settled
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;
    use lapin::message::Delivery;

    use super::*;

    fn returned() -> BasicReturnMessage {
        let delivery = Delivery::mock(0, "catalog".into(), "component.default.a".into(), false, Vec::new());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    #[test]
    fn a_return_anywhere_in_a_wake_up_voids_all_of_it() {
        let batch = vec![
            (1.into(), Ok(Confirmation::Ack(None))),
            (2.into(), Ok(Confirmation::Ack(Some(returned())))),
            (3.into(), Ok(Confirmation::Ack(None))),
            (4.into(), Err(ErrorKind::FutureCompleted.into())),
        ];

        let settled = judge(batch);

        assert_eq!(settled.stored, []);
        assert!(matches!(settled.trouble, Some(Trouble::Returned(_))), "{settled:?}");
    }

    #[test]
    fn what_was_confirmed_beside_a_nack_is_stored() {
        let batch = vec![
            (1.into(), Ok(Confirmation::Ack(None))),
            (2.into(), Ok(Confirmation::Nack(None))),
            (3.into(), Ok(Confirmation::Ack(None))),
        ];

        let settled = judge(batch);

        assert_eq!(settled.stored, [1.into(), 3.into()]);
        assert!(matches!(settled.trouble, Some(Trouble::Nacked(offset)) if offset == 2.into()));
    }

    #[test]
    fn a_confirm_that_asked_for_none_is_no_acknowledgement() {
        let settled = judge(vec![(1.into(), Ok(Confirmation::NotRequested))]);
        assert_eq!(settled.stored, []);
        assert!(settled.trouble.is_some());
    }
}
