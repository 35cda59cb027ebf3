//! The destinations: a server, a proxy before it that the sink speaks through, and a consumer behind it that notes when each
//! message came.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{self, consumer::pull, stream};
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_OFFSET};
use catalog_bridge_history::{Delivered, Lane};
use catalog_bridge_services::{
    ElasticMq, FaultProxy, Nats, NatsOptions, RabbitMq, RabbitMqOptions, WebhookReceiver, WebhookReply, WebhookRequest,
};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::stub::{Call, Reply, Stub};

/// An entity of this name and size is sent, and refused by the stream (for its size) and by the queue (for its name).
pub(super) const REFUSED: &str = "refused";
pub(super) const REFUSED_BYTES: usize = 400_000;
const STREAM_MESSAGE_BYTES_MAX: i32 = 100_000;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One sink's destination.
pub(super) struct Destination {
    /// The sink's name.
    pub(super) sink: &'static str,
    /// Its keys in the config.
    pub(super) section: String,
    pub(super) proxy: FaultProxy,
    /// Where order is promised.
    pub(super) lane: Lane,
    /// How many messages a broken connection may repeat.
    pub(super) window: usize,
    arrived: Arrived,
    consumer: Option<JoinHandle<Result<()>>>,
    _server: Box<dyn Any + Send>,
}

/// What came, in the destination's order.
type Arrived = Arc<Mutex<Vec<(Delivered, Instant)>>>;

impl Destination {
    /// Everything that came so far.
    pub(super) fn arrived(&self) -> Vec<Delivered> {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.iter().map(|(message, _)| message.clone()).collect()
    }

    /// When each offset came first.
    pub(super) fn times(&self) -> BTreeMap<u64, Instant> {
        let mut times = BTreeMap::new();
        for (message, at) in self.arrived.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            times.entry(message.offset.get()).or_insert(*at);
        }
        times
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.consumer.iter().for_each(JoinHandle::abort);
    }
}

fn note(arrived: &Arrived, message: Delivered) {
    arrived.lock().unwrap_or_else(PoisonError::into_inner).push((message, Instant::now()));
}

/// The same event has the same bytes wherever it went: its type and its data.
fn delivered(offset: &str, generation: &str, subject: &str, kind: &str, data: &Value) -> Result<Delivered> {
    Ok(Delivered {
        offset: offset.parse::<u64>()?.into(),
        key: subject.to_owned(),
        generation: generation.parse()?,
        bytes: format!("{kind} {data}").into_bytes(),
    })
}

/// A RabbitMQ quorum queue.
pub(super) async fn rabbitmq() -> Result<Destination> {
    let server = RabbitMq::start(RabbitMqOptions::default()).await?;
    let proxy = FaultProxy::start(&server.address(1))?;
    let connection = Connection::connect(&server.url(1), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare("catalog".into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("catalog".into(), durable, quorum).await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind("catalog".into(), "catalog".into(), "#".into(), options, none.clone()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut messages = channel.basic_consume("catalog".into(), "reader".into(), options, none).await?;
    let arrived = Arrived::default();
    let noted = Arc::clone(&arrived);
    let consumer = tokio::spawn(async move {
        let _connection = connection;
        while let Some(message) = messages.next().await {
            note(&noted, of_rabbitmq(&message?)?);
        }
        bail!("the consumer ended")
    });
    Ok(Destination {
        sink: "queue",
        section: format!("rabbitmq: {{ url: \"amqp://guest:guest@{}/%2f\", exchange: catalog }}", proxy.address()),
        proxy,
        lane: Lane::Entity,
        window: 1_000,
        arrived,
        consumer: Some(consumer),
        _server: Box::new(server),
    })
}

fn of_rabbitmq(message: &lapin::message::Delivery) -> Result<Delivered> {
    let headers = message.properties.headers().as_ref().context("headers")?;
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
        other => bail!("{name} is {other:?}"),
    };
    let data = serde_json::from_slice(&message.data)?;
    let (offset, generation) = (text(BRIDGE_OFFSET)?, text(BRIDGE_GENERATION)?);
    delivered(&offset, &generation, &text("cloudEvents_subject")?, &text("cloudEvents_type")?, &data)
}

/// A JetStream stream.
pub(super) async fn nats() -> Result<Destination> {
    let proxy = FaultProxy::reserve()?;
    let server = Nats::start(NatsOptions { advertised: vec![proxy.address()], ..NatsOptions::default() }).await?;
    proxy.forward_to(&server.address(1))?;
    let options = async_nats::ConnectOptions::new().ignore_discovered_servers();
    let context = jetstream::new(options.connect(format!("nats://{}", server.address(1))).await?);
    let config = stream::Config {
        name: "CATALOG".to_owned(),
        subjects: vec!["catalog.>".to_owned()],
        max_message_size: STREAM_MESSAGE_BYTES_MAX,
        ..stream::Config::default()
    };
    let stream = context.create_stream(config).await?;
    let mut messages = stream.create_consumer(pull::OrderedConfig::default()).await?.messages().await?;
    let arrived = Arrived::default();
    let noted = Arc::clone(&arrived);
    let consumer = tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            note(&noted, of_nats(&message?)?);
        }
        bail!("the consumer ended")
    });
    Ok(Destination {
        sink: "subjects",
        section: format!("nats: {{ servers: [\"nats://{}\"], stream: CATALOG }}", proxy.address()),
        proxy,
        lane: Lane::Stream,
        window: 0,
        arrived,
        consumer: Some(consumer),
        _server: Box::new(server),
    })
}

fn of_nats(message: &jetstream::Message) -> Result<Delivered> {
    let headers = message.headers.as_ref().context("headers")?;
    let text =
        |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str).with_context(|| format!("no {name}"));
    let data = serde_json::from_slice(&message.payload)?;
    delivered(text(BRIDGE_OFFSET)?, text(BRIDGE_GENERATION)?, text("ce-subject")?, text("ce-type")?, &data)
}

/// A FIFO queue of SQS, behind a stub: the stand-in refuses nothing that the sink sends.
pub(super) async fn sqs() -> Result<Destination> {
    let server = ElasticMq::start().await?;
    let stub = Stub::start(&server.endpoint()).await?;
    stub.script(refuse);
    let proxy = FaultProxy::start(stub.address())?;
    let sqs = Sqs { client: reqwest::Client::new(), endpoint: server.endpoint() };
    let queue = json!({ "QueueName": "catalog.fifo", "Attributes": { "FifoQueue": "true" } });
    let url = sqs.ask("CreateQueue", queue).await?["QueueUrl"].clone();
    let section = json!({
        "queue_url": url,
        "endpoint": format!("http://{}", proxy.address()),
        "region": "us-east-1",
        "access_key_id": "tests",
        "secret_access_key": "tests",
    });
    let arrived = Arrived::default();
    let noted = Arc::clone(&arrived);
    let consumer = tokio::spawn(async move {
        loop {
            let request = json!({
                "QueueUrl": url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "WaitTimeSeconds": 1,
            });
            let received = sqs.ask("ReceiveMessage", request).await?;
            let mut entries = Vec::new();
            for (number, message) in received["Messages"].as_array().into_iter().flatten().enumerate() {
                note(&noted, of_sqs(message)?);
                entries.push(json!({ "Id": number.to_string(), "ReceiptHandle": message["ReceiptHandle"] }));
            }
            if !entries.is_empty() {
                sqs.ask("DeleteMessageBatch", json!({ "QueueUrl": url, "Entries": entries })).await?;
            }
        }
    });
    Ok(Destination {
        sink: "fifo",
        section: format!("sqs: {section}"),
        proxy,
        lane: Lane::Entity,
        window: 1_000,
        arrived,
        consumer: Some(consumer),
        _server: Box::new((server, stub)),
    })
}

/// What SQS answers when an entry is refused: its neighbours in the request are stored.
fn refuse(call: &Call) -> Reply {
    let is_refused = |entry: &Value| entry["MessageGroupId"].as_str().is_some_and(|group| group.ends_with(REFUSED));
    let places = call.entries().iter().enumerate().filter(|(_, entry)| call.is_send() && is_refused(entry));
    let failed: Vec<usize> = places.map(|(place, _)| place).collect();
    match failed.is_empty() {
        true => Reply::Pass,
        false => Reply::Entries { failed, code: "InvalidMessageContents", message: "never", sender_fault: true },
    }
}

/// Requests straight to the server, which asks for no signature.
struct Sqs {
    client: reqwest::Client,
    endpoint: String,
}

impl Sqs {
    async fn ask(&self, action: &str, body: Value) -> Result<Value> {
        let request = self.client.post(&self.endpoint).header("content-type", "application/x-amz-json-1.0");
        let request = request.header("x-amz-target", format!("AmazonSQS.{action}")).body(body.to_string());
        let text = request.send().await?.error_for_status()?.text().await?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

fn of_sqs(message: &Value) -> Result<Delivered> {
    let attribute = |name: &str| {
        message["MessageAttributes"][name]["StringValue"].as_str().with_context(|| format!("no {name} in {message}"))
    };
    let body = message["Body"].as_str().context("a body")?;
    of_event(attribute(BRIDGE_OFFSET)?, attribute(BRIDGE_GENERATION)?, body.as_bytes())
}

/// An HTTP endpoint.
pub(super) fn webhook() -> Result<Destination> {
    let server = WebhookReceiver::start(&[SECRET])?;
    let proxy = FaultProxy::start(&server.address())?;
    let arrived = Arrived::default();
    let noted = Arc::clone(&arrived);
    server.answer(move |request| match of_webhook(request) {
        Ok(message) => {
            note(&noted, message);
            WebhookReply::stored()
        }
        Err(_) => WebhookReply::status(400),
    });
    let section = json!({
        "url": format!("http://{}/catalog", proxy.address()),
        "secret": SECRET,
        "allow_http": true,
        "allow_addresses": ["127.0.0.1"],
    });
    Ok(Destination {
        sink: "hook",
        section: format!("webhook: {section}"),
        proxy,
        lane: Lane::Entity,
        window: 500,
        arrived,
        consumer: None,
        _server: Box::new(server),
    })
}

fn of_webhook(request: &WebhookRequest) -> Result<Delivered> {
    let header = |name: &str| request.headers.get(name).with_context(|| format!("no {name}"));
    of_event(header(BRIDGE_OFFSET)?, header(BRIDGE_GENERATION)?, &request.body)
}

/// A structured CloudEvent.
fn of_event(offset: &str, generation: &str, body: &[u8]) -> Result<Delivered> {
    let event: Value = serde_json::from_slice(body)?;
    let text = |name: &str| event[name].as_str().with_context(|| format!("no {name}"));
    delivered(offset, generation, text("subject")?, text("type")?, &event["data"])
}
