//! One life of a publisher: everything offered is sent at once, each message tied to the one before it.
//!
//! Keeps P5 and P6: every message says which sequence it expects to follow, and every one but the session's first also which
//! message. Whatever is lost on the way or written by others, everything later is refused, so what the stream holds is a prefix of
//! what was sent. The sequence alone would not do: a foreign message takes the number that ours wanted, and the next one of
//! ours would fit again (MEASURED section 3). The first message has no such tie, because the server forgets the last
//! message's id after its duplicate window and a restart. The first failure ends the session; the next one reads the tail.
//!
//! A replicated stream gets the sequence alone. There the tie harms the stream itself: a replica that catches up does not learn
//! the last message's id (nats-server 2.15.2, `processCatchupMsg`), refuses what is tied to it, and never becomes current
//! again. What a foreign message may then have replaced lies above the checkpoint, and the tail tells of it.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::time::Duration;

use async_nats::header::{
    NATS_EXPECTED_LAST_MESSAGE_ID, NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID,
};
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_trait::async_trait;
use catalog_bridge_api::{Acks, ConnectorError, EntityRef, Feed, Message, Offset, Session, SinkName, Template};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use crate::connection::Connection;
use crate::errors::{self, Verdict};
use crate::record;
use crate::subject;
use crate::tail::{Mark, Start};

/// Messages that may be unacknowledged: the best of 500, 2,000 and 4,000 by a little (MEASURED section 3).
pub(crate) const WINDOW_EVENTS: usize = 2_000;
/// How long an acknowledgement, or the answer to any other question, may take.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the feed waits for what is in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest subject: the server takes 4,096 bytes for it, the reply subject and the sizes together.
const SUBJECT_BYTES_MAX: usize = 3_500;

/// A session.
pub(crate) struct NatsSession {
    pub(crate) connection: Connection,
    pub(crate) template: Template,
    pub(crate) sink: SinkName,
    pub(crate) checkpoint: Offset,
    pub(crate) start: Start,
    /// Whether each message names the one before it.
    pub(crate) is_chained: bool,
}

#[async_trait]
impl Session for NatsSession {
    async fn run(self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        let NatsSession { connection, template, sink, checkpoint, start, is_chained } = *self;
        acks.remember(state(&start.mark));
        if let Some(stored) = start.stored.filter(|stored| *stored > checkpoint) {
            acks.already_stored(stored);
        }
        let mut lane = Lane {
            connection: &connection,
            template: &template,
            log_id: start.mark.log_id.to_string(),
            sink: sink.to_string(),
            stored: start.stored.unwrap_or_default(),
            last_sequence: start.mark.sequence,
            last_id: None,
            is_chained,
            mark: start.mark,
            is_mark_new: false,
            sent: VecDeque::new(),
            answers: FuturesOrdered::new(),
            acks,
        };
        connection.within(lane.publish(&mut feed)).await
    }
}

fn state(mark: &Mark) -> serde_json::Value {
    serde_json::to_value(mark).expect("plain data")
}

/// What is known of a message that was sent.
struct Sent {
    offset: Offset,
    entity_ref: EntityRef,
    sequence: u64,
}

struct Lane<'a> {
    connection: &'a Connection,
    template: &'a Template,
    log_id: String,
    sink: String,
    /// Everything up to here is in the stream.
    stored: Offset,
    /// The sequence of the last message sent, if all goes well.
    last_sequence: u64,
    /// Its id, if it was sent in this session and the next one names it.
    last_id: Option<String>,
    is_chained: bool,
    /// The last acknowledged message.
    mark: Mark,
    is_mark_new: bool,
    sent: VecDeque<Sent>,
    /// In the order of `sent`. Polled as soon as they are pushed, so that their time limit runs from the send.
    answers: FuturesOrdered<<PublishAckFuture as IntoFuture>::IntoFuture>,
    acks: Acks,
}

impl Lane<'_> {
    async fn publish(&mut self, feed: &mut Feed) -> Result<(), ConnectorError> {
        loop {
            tokio::select! {
                biased;
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => self.take(answer)?,
                message = feed.next(), if self.answers.len() < WINDOW_EVENTS => match message {
                    Some(message) => self.send(message).await?,
                    None => return self.drain().await.map(drop),
                },
            }
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), ConnectorError> {
        if message.offset() <= self.stored {
            // Nothing was sent in this session yet, so nothing before it is open.
            self.acks.up_to(message.offset());
            return Ok(());
        }
        let subject = subject::subject(self.template, &message.entity_ref);
        if subject.len() > SUBJECT_BYTES_MAX {
            let reason = format!("its subject of {} bytes is above {SUBJECT_BYTES_MAX}", subject.len());
            return self.refuse(&message, reason).await;
        }
        let id = message.id.to_string();
        let mut headers = record::headers(&message, &self.log_id, &self.sink);
        headers.insert(NATS_EXPECTED_STREAM, self.mark.stream.as_str());
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, self.last_sequence.to_string());
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        if let Some(last) = self.last_id.take() {
            headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, last);
        }
        let publish = PublishMessage::build().payload(message.body.clone()).headers(headers);
        match self.connection.context.send_publish(subject, publish).await {
            Ok(answer) => {
                self.last_sequence += 1;
                self.last_id = self.is_chained.then_some(id);
                let (offset, entity_ref) = (message.offset(), message.entity_ref);
                self.sent.push_back(Sent { offset, entity_ref, sequence: self.last_sequence });
                self.answers.push_back(answer.into_future());
                Ok(())
            }
            // The client's own verdict: the message was not sent.
            Err(error) if errors::publish_verdict(&error) == Verdict::Refused => {
                self.refuse(&message, error.to_string()).await
            }
            Err(error) => Err(self.transient(error)),
        }
    }

    /// Ends the session over one message, when everything before it is acknowledged.
    async fn refuse(&mut self, message: &Message, reason: String) -> Result<(), ConnectorError> {
        if !self.drain().await? {
            return Err(self.transient("the acknowledgements did not come in time"));
        }
        let (offset, entity_ref) = (message.offset(), message.entity_ref.clone());
        Err(ConnectorError::Refused { offset, entity_ref, endpoint: self.connection.endpoint.clone(), reason })
    }

    /// Waits for what is in flight; `false` when it took too long.
    async fn drain(&mut self) -> Result<bool, ConnectorError> {
        let settle = async {
            while let Some(answer) = self.answers.next().await {
                self.take(answer)?;
            }
            Ok(true)
        };
        tokio::time::timeout(DRAIN_TIMEOUT, settle).await.unwrap_or(Ok(false))
    }

    /// Takes an answer and all others that are there, and reports how far they reach.
    fn take(&mut self, first: Result<PublishAck, PublishError>) -> Result<(), ConnectorError> {
        let mut next = Some(first);
        let mut outcome = Ok(());
        while let Some(answer) = next {
            outcome = self.settle(answer);
            if outcome.is_err() {
                break;
            }
            next = self.answers.next().now_or_never().flatten();
        }
        if std::mem::take(&mut self.is_mark_new)
            && let Some(offset) = self.mark.offset
        {
            // In this order: the mark is never behind the checkpoint that is stored with it.
            self.acks.remember(state(&self.mark));
            self.acks.up_to(offset);
        }
        outcome
    }

    fn settle(&mut self, answer: Result<PublishAck, PublishError>) -> Result<(), ConnectorError> {
        let sent = self.sent.pop_front().expect("an answer is to a message that was sent");
        match answer {
            Ok(ack) if ack.sequence == sent.sequence => {
                self.mark.sequence = sent.sequence;
                self.mark.offset = Some(sent.offset);
                self.is_mark_new = true;
                Ok(())
            }
            Ok(ack) => {
                if ack.duplicate {
                    self.acks.up_to(sent.offset);
                }
                let Sent { offset, sequence, .. } = sent;
                Err(self
                    .transient(format!("event {offset} was stored as message {} instead of {sequence}", ack.sequence)))
            }
            Err(error) => Err(self.explain(sent, error)),
        }
    }

    fn explain(&self, sent: Sent, error: PublishError) -> ConnectorError {
        let endpoint = self.connection.endpoint.clone();
        let Sent { offset, entity_ref, .. } = sent;
        match errors::publish_verdict(&error) {
            Verdict::Refused => ConnectorError::Refused { offset, entity_ref, endpoint, reason: error.to_string() },
            Verdict::Misconfigured => ConnectorError::misconfigured(endpoint, error.to_string()),
            Verdict::Transient => match error.kind() {
                PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => self
                    .transient(format!("the stream does not end where it did ({error}); its tail is looked at again")),
                _ => self.transient(error),
            },
        }
    }

    fn transient(&self, source: impl Into<catalog_bridge_api::BoxError>) -> ConnectorError {
        ConnectorError::transient("publish", &self.connection.endpoint, source)
    }
}
