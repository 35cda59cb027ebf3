//! Compares the connector with a bare publisher of the same client library and settings, in one run on one ElasticMQ:
//! `cargo run --release -p catalog-bridge-sqs --example sqs_throughput -- [messages] [added latency in ms]`
//!
//! Rounds alternate, because one machine's speed drifts by more than the difference. Compare ratios, not rates.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry};
use catalog_bridge_api::{
    Ack, Acks, BuildContext, Claim, ConnectorKind, EntityRef, EventType, Lease, Message, MessageId, Ordering, SinkName,
    feed,
};
use catalog_bridge_services::{ElasticMq, FaultProxy};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

const ROUNDS: usize = 5;
const BODY_BYTES: usize = 1024;
/// As the connector: requests under way, and entries of each.
const LANES: usize = 32;
const ENTRIES: usize = 10;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(5_000), |count| count.parse())?;
    let latency = arguments.next().map_or(Ok(0), |latency| latency.parse())?;
    let server = ElasticMq::start().await?;
    let proxy = FaultProxy::start(&server.address())?;
    let mut endpoint = server.endpoint();
    if latency > 0 {
        proxy.set_latency(Duration::from_millis(latency) / 2)?;
        endpoint = format!("http://{}", proxy.address());
    }
    let messages: Vec<Message> = (1..=count).map(message).collect();
    let (mut bare_rates, mut connector_rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare_rates.push(bare(&endpoint, &messages).await?);
        connector_rates.push(connector(&endpoint, &messages).await?);
    }
    let median = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    println!("{count} messages of {BODY_BYTES} bytes, {ROUNDS} rounds, {latency} ms added to each answer");
    for (name, rates) in [("bare", &bare_rates), ("connector", &connector_rates)] {
        let list: Vec<String> = rates.iter().map(|rate| format!("{:.1}k", rate / 1000.0)).collect();
        let ratio = median(rates) / median(&bare_rates);
        println!("{name:10} median {:5.1}k/s  ratio {ratio:.2}  [{}]", median(rates) / 1000.0, list.join(" "));
    }
    Ok(())
}

fn message(offset: u64) -> Message {
    Message {
        id: MessageId { log_id: Uuid::from_u128(1), generation: 1, offset: offset.into() },
        entity_ref: EntityRef::parse(&format!("component:default/entity-{offset}")).expect("valid"),
        event_type: EventType::Updated,
        attributes: Vec::new(),
        content_type: "application/cloudevents+json",
        body: "x".repeat(BODY_BYTES).into(),
        is_reference: false,
    }
}

fn client(endpoint: &str) -> Client {
    let settings = aws_sdk_sqs::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("bench", "bench", None, None, "bench"))
        .retry_config(RetryConfig::disabled())
        .endpoint_url(endpoint);
    Client::from_conf(settings.build())
}

async fn new_queue(client: &Client) -> Result<String> {
    let name = format!("throughput-{}.fifo", Uuid::new_v4().simple());
    let created =
        client.create_queue().queue_name(name).attributes(QueueAttributeName::FifoQueue, "true").send().await?;
    created.queue_url.context("a URL")
}

/// ElasticMQ slows down with what it holds (MEASURED section 4).
async fn drop_queue(client: &Client, url: &str) -> Result<()> {
    client.delete_queue().queue_url(url).send().await?;
    Ok(())
}

/// What an application would write: full requests, so many at once.
async fn bare(endpoint: &str, messages: &[Message]) -> Result<f64> {
    let client = client(endpoint);
    let url = new_queue(&client).await?;
    let attribute = |value: String| MessageAttributeValue::builder().data_type("String").string_value(value).build();
    let began = Instant::now();
    let mut requests = JoinSet::new();
    for chunk in messages.chunks(ENTRIES) {
        if requests.len() >= LANES {
            requests.join_next().await.context("a request")???;
        }
        let mut request = client.send_message_batch().queue_url(&url);
        for message in chunk {
            let entry = SendMessageBatchRequestEntry::builder()
                .id(message.offset().to_string())
                .message_body(std::str::from_utf8(&message.body)?)
                .message_group_id(message.entity_ref.as_str())
                .message_deduplication_id(message.id.to_string())
                .message_attributes("catalog-bridge-log-id", attribute(message.id.log_id.to_string())?)
                .message_attributes("catalog-bridge-generation", attribute("1".to_owned())?)
                .message_attributes("catalog-bridge-offset", attribute(message.offset().to_string())?)
                .message_attributes("event-type", attribute("updated".to_owned())?)
                .message_attributes("kind", attribute("component".to_owned())?)
                .message_attributes("content-type", attribute(message.content_type.to_owned())?);
            request = request.entries(entry.build()?);
        }
        requests.spawn(async move {
            let output = request.send().await?;
            ensure!(output.failed.is_empty(), "{:?}", output.failed);
            anyhow::Ok(())
        });
    }
    while let Some(done) = requests.join_next().await {
        done??;
    }
    let rate = messages.len() as f64 / began.elapsed().as_secs_f64();
    drop_queue(&client, &url).await?;
    Ok(rate)
}

async fn connector(endpoint: &str, messages: &[Message]) -> Result<f64> {
    let client = client(endpoint);
    let url = new_queue(&client).await?;
    let section = json!({
        "queue_url": url, "endpoint": endpoint, "region": "us-east-1",
        "access_key_id": "bench", "secret_access_key": "bench",
    });
    let sink = SinkName::parse("bench")?;
    let context = BuildContext { sink: sink.clone(), ordering: Ordering::Entity, ensure: false };
    let connector = catalog_bridge_sqs::KIND.build(section, context)?;
    let claim = Claim {
        log_id: Uuid::from_u128(1),
        sink,
        generation: 1,
        epoch: 1,
        checkpoint: 0.into(),
        head: 0.into(),
        ordering: Ordering::Entity,
        state: None,
        lease: Lease::unlimited(),
    };
    let session = connector.open(claim).await?;
    let (sender, feed) = feed(connector.limits().window_events, Lease::unlimited());
    let (acks, mut reports) = Acks::channel();
    let began = Instant::now();
    let running = tokio::spawn(session.run(feed, acks));
    let offering = async {
        for message in messages {
            ensure!(sender.offer(message.clone()).await, "the session is gone");
        }
        Ok(())
    };
    let counting = async {
        let mut acknowledged = 0;
        while acknowledged < messages.len() {
            match reports.next().await.context("the session is gone")? {
                Ack::One(_) => acknowledged += 1,
                Ack::Remember(_) => {}
                other => anyhow::bail!("{other:?}"),
            }
        }
        Ok(())
    };
    tokio::try_join!(offering, counting)?;
    let rate = messages.len() as f64 / began.elapsed().as_secs_f64();
    drop(sender);
    running.await??;
    drop_queue(&client, &url).await?;
    Ok(rate)
}
