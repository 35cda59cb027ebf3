//! NATS JetStream by `async-nats`: each message names the sequence and the message before it, 2,000 unacknowledged.

use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_MESSAGE_ID, NATS_EXPECTED_LAST_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ContextBuilder};
use async_trait::async_trait;
use catalog_bridge_api::Message;
use catalog_bridge_services::{Nats, NatsOptions};
use serde_json::{Value, json};

use crate::Destination;

const WINDOW: usize = 2_000;
const NAME: &str = "BENCH";

type Ack = Pin<Box<<PublishAckFuture as IntoFuture>::IntoFuture>>;

/// A stream with one replica, in a file.
pub(crate) struct Stream {
    nats: Nats,
}

impl Stream {
    /// Starts a server.
    pub(crate) async fn start() -> Result<Self> {
        Ok(Stream { nats: Nats::start(NatsOptions::default()).await? })
    }

    async fn context(&self) -> Result<jetstream::Context> {
        let client = async_nats::connect(self.nats.url()).await?;
        Ok(ContextBuilder::new().max_ack_inflight(2 * WINDOW).build(client))
    }
}

#[async_trait]
impl Destination for Stream {
    fn name(&self) -> &'static str {
        "NATS JetStream, one replica"
    }

    async fn fresh(&mut self) -> Result<Value> {
        let context = self.context().await?;
        // An error says that there is none.
        let _ = context.delete_stream(NAME).await;
        let config = jetstream::stream::Config {
            name: NAME.to_owned(),
            subjects: vec!["catalog.>".to_owned()],
            allow_direct: true,
            ..Default::default()
        };
        context.create_stream(config).await?;
        Ok(json!({ "servers": [self.nats.url()], "stream": NAME }))
    }

    async fn publish(&self, messages: Vec<Message>) -> Result<Duration> {
        let context = self.context().await?;
        let begin = Instant::now();
        let mut pending: VecDeque<Ack> = VecDeque::with_capacity(WINDOW);
        let mut last: Option<String> = None;
        for (sequence, message) in messages.into_iter().enumerate() {
            if pending.len() == WINDOW
                && let Some(ack) = pending.pop_front()
            {
                ack.await?;
            }
            let id = message.id.to_string();
            let mut headers = HeaderMap::new();
            for (name, value) in &message.attributes {
                headers.insert(format!("ce-{name}").as_str(), value.as_str());
            }
            headers.insert(NATS_MESSAGE_ID, id.as_str());
            headers.insert(NATS_EXPECTED_LAST_SEQUENCE, sequence.to_string());
            if let Some(last) = last.replace(id) {
                headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, last);
            }
            let subject = format!("catalog.{}", message.entity_ref.as_str().replace([':', '/'], "."));
            let publish = PublishMessage::build().payload(message.body).headers(headers);
            let mut ack: Ack = Box::pin(context.send_publish(subject, publish).await?.into_future());
            match ack.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(ack) => drop(ack?),
                Poll::Pending => pending.push_back(ack),
            }
        }
        for ack in pending {
            ack.await?;
        }
        Ok(begin.elapsed())
    }

    async fn count(&self) -> Result<usize> {
        let stream = self.context().await?.get_stream(NAME).await?;
        Ok(usize::try_from(stream.cached_info().state.messages)?)
    }
}
