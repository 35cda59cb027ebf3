//! RabbitMQ by `lapin`: persistent, mandatory, confirmed; each publication polled once, 1,000 unconfirmed.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use catalog_bridge_api::Message;
use catalog_bridge_services::{RabbitMq, RabbitMqOptions};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

use crate::Destination;

const WINDOW: usize = 1_000;
const NAME: &str = "bench";

type Confirm = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A durable queue bound to a topic exchange.
pub(crate) struct Queue {
    kind: &'static str,
    rabbit: RabbitMq,
}

impl Queue {
    /// Starts a broker; `kind` is `quorum` or `classic`.
    pub(crate) async fn start(kind: &'static str) -> Result<Self> {
        Ok(Queue { kind, rabbit: RabbitMq::start(RabbitMqOptions::default()).await? })
    }

    async fn channel(&self) -> Result<(Connection, Channel)> {
        let connection = Connection::connect(&self.rabbit.url(1), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }
}

#[async_trait]
impl Destination for Queue {
    fn name(&self) -> &'static str {
        if self.kind == "quorum" { "RabbitMQ, quorum queue" } else { "RabbitMQ, classic queue" }
    }

    async fn fresh(&mut self) -> Result<Value> {
        let (connection, channel) = self.channel().await?;
        channel.queue_delete(NAME.into(), QueueDeleteOptions::default()).await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(NAME.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(self.kind.into()));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(NAME.into(), durable, arguments).await?;
        let (options, table) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(NAME.into(), NAME.into(), "#".into(), options, table).await?;
        connection.close(200, "OK".into()).await?;
        Ok(json!({ "url": self.rabbit.url(1), "exchange": NAME, "queue": NAME }))
    }

    async fn publish(&self, messages: Vec<Message>) -> Result<Duration> {
        let (connection, channel) = self.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let begin = Instant::now();
        let mut pending: VecDeque<Confirm> = VecDeque::with_capacity(WINDOW);
        for message in messages {
            if pending.len() == WINDOW {
                settle(&mut pending).await?;
            }
            let mut confirm = publication(channel.clone(), message);
            match confirm.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(confirmation) => ensure!(confirmation?.is_ack(), "a message was not stored"),
                Poll::Pending => pending.push_back(confirm),
            }
        }
        while !pending.is_empty() {
            settle(&mut pending).await?;
        }
        let took = begin.elapsed();
        connection.close(200, "OK".into()).await?;
        Ok(took)
    }

    async fn count(&self) -> Result<usize> {
        let (connection, channel) = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let count = channel.queue_declare(NAME.into(), passive, FieldTable::default()).await?.message_count();
        connection.close(200, "OK".into()).await?;
        Ok(usize::try_from(count)?)
    }
}

fn publication(channel: Channel, message: Message) -> Confirm {
    let mut headers = FieldTable::default();
    for (name, value) in &message.attributes {
        headers.insert(format!("cloudEvents_{name}").into(), AMQPValue::LongString(value.as_str().into()));
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(message.content_type.into())
        .with_message_id(message.id.to_string().into())
        .with_headers(headers);
    let key = message.entity_ref.as_str().replace([':', '/'], ".");
    Box::pin(async move {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        channel.basic_publish(NAME.into(), key.into(), options, &message.body, properties).await?.await
    })
}

async fn settle(pending: &mut VecDeque<Confirm>) -> Result<()> {
    let Some(confirm) = pending.pop_front() else { return Ok(()) };
    ensure!(matches!(confirm.await?, Confirmation::Ack(None)), "a message was not stored");
    Ok(())
}
