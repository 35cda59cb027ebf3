//! What was published and is not settled yet.
//!
//! Keeps P5 and P8: publish futures are polled once, in order, which numbers them and queues their frames in order (MEASURED section
//! 2); and the client library attaches a returned message to a confirm that it picks at random among those that it resolves
//! together. Of two returned messages the first may so come with the second one's confirm: from the first return on nothing
//! counts as stored until every confirm is in, and then what was not returned, by message id.

use std::collections::{BTreeMap, BTreeSet};
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
    returned: Vec<Returned>,
    /// Confirmed since a message was returned.
    doubtful: Vec<Offset>,
    /// A confirm will never come.
    is_broken: bool,
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
    Returned(Returned),
    /// The broker did not store this one.
    Nacked(Offset),
    /// The channel or the connection broke.
    Failed(Error),
}

/// A message that found no queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returned {
    pub(crate) message_id: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The broker's words.
    pub(crate) reason: String,
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
        self.judge(batch)
    }

    /// Everything else that is stored, once every confirm is in; less when the connection breaks before. Cancel safe.
    pub(crate) async fn rest(&mut self) -> Vec<Offset> {
        let mut stored = Vec::new();
        while !self.confirms.is_empty() && !self.is_broken {
            stored.extend(self.settled().await.stored);
        }
        let returned: Option<BTreeSet<Offset>> = self.returned.iter().map(Returned::offset).collect();
        // Without its id nothing tells which one was returned.
        if let Some(returned) = returned.filter(|_| !self.is_broken) {
            stored.extend(self.doubtful.drain(..).filter(|offset| !returned.contains(offset)));
        }
        stored
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

    /// What a wake-up means by itself.
    fn judge(&mut self, batch: Vec<Outcome>) -> Settled {
        let mut settled = Settled::default();
        for (offset, outcome) in batch {
            match outcome {
                Ok(confirmation) => {
                    match confirmation.is_ack() {
                        true => settled.stored.push(offset),
                        false => settled.trouble = settled.trouble.or(Some(Trouble::Nacked(offset))),
                    }
                    self.returned.extend(confirmation.take_message().map(Returned::from));
                }
                Err(error) => {
                    self.is_broken = true;
                    settled.trouble = settled.trouble.or(Some(Trouble::Failed(error)));
                }
            }
        }
        if let Some(returned) = self.returned.first() {
            self.doubtful.append(&mut settled.stored);
            settled.trouble = Some(Trouble::Returned(returned.clone()));
        }
        for offset in &settled.stored {
            self.sent.remove(offset);
        }
        settled
    }
}

impl From<BasicReturnMessage> for Returned {
    fn from(message: BasicReturnMessage) -> Self {
        let id = message.properties.message_id().as_ref();
        Returned {
            message_id: id.map_or_else(String::new, ToString::to_string),
            exchange: message.exchange.to_string(),
            routing_key: message.routing_key.to_string(),
            reason: message.reply_text.to_string(),
        }
    }
}

impl Returned {
    fn offset(&self) -> Option<Offset> {
        self.message_id.rsplit('.').next()?.parse().ok().map(Offset::new)
    }
}

#[derive(Default)]
struct Pause(AtomicBool);

impl Wake for Pause {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;
    use lapin::message::Delivery;

    use super::*;

    fn returned(offset: u64) -> BasicReturnMessage {
        let mut delivery = Delivery::mock(0, "catalog".into(), "component.default.a".into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_message_id(format!("0123abcd.1.{offset}").into());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    fn confirm(offset: u64, outcome: Result<Confirmation, Error>) -> Confirm {
        Box::pin(ready((Offset::new(offset), outcome)))
    }

    #[tokio::test]
    async fn what_was_returned_is_told_by_its_id_and_not_by_whose_confirm_brought_it() {
        let mut in_flight = InFlight::default();
        let batch = vec![
            (1.into(), Ok(Confirmation::Ack(None))),
            (2.into(), Ok(Confirmation::Ack(Some(returned(3))))),
            (4.into(), Ok(Confirmation::Ack(None))),
        ];

        let settled = in_flight.judge(batch);
        in_flight.confirms.push(confirm(3, Ok(Confirmation::Ack(None))));
        // The second one comes with a confirm that is later than its own.
        in_flight.confirms.push(confirm(5, Ok(Confirmation::Ack(Some(returned(4))))));

        assert_eq!(settled.stored, []);
        assert!(matches!(settled.trouble, Some(Trouble::Returned(returned)) if returned.message_id.ends_with(".3")));
        assert_eq!(in_flight.rest().await, [1.into(), 2.into(), 5.into()]);
    }

    #[tokio::test]
    async fn after_a_return_nothing_is_stored_unless_every_confirm_comes() {
        let mut in_flight = InFlight::default();
        let settled = in_flight.judge(vec![(1.into(), Ok(Confirmation::Ack(Some(returned(2)))))]);
        in_flight.confirms.push(confirm(2, Ok(Confirmation::Ack(None))));
        in_flight.confirms.push(confirm(3, Err(ErrorKind::FutureCompleted.into())));

        assert_eq!((settled.stored, in_flight.rest().await), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_was_confirmed_beside_a_nack_is_stored() {
        let batch = vec![
            (1.into(), Ok(Confirmation::Ack(None))),
            (2.into(), Ok(Confirmation::Nack(None))),
            (3.into(), Ok(Confirmation::Ack(None))),
        ];

        let settled = InFlight::default().judge(batch);

        assert_eq!(settled.stored, [1.into(), 3.into()]);
        assert!(matches!(settled.trouble, Some(Trouble::Nacked(offset)) if offset == 2.into()));
    }

    #[test]
    fn a_confirm_that_asked_for_none_is_no_acknowledgement() {
        let settled = InFlight::default().judge(vec![(1.into(), Ok(Confirmation::NotRequested))]);
        assert_eq!(settled.stored, []);
        assert!(settled.trouble.is_some());
    }
}
