//! SQS FIFO by `aws-sdk-sqs` to ElasticMQ: full requests, 32 under way; beside it, and 20 ms away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry};
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, Message};
use catalog_bridge_services::{ElasticMq, FaultProxy};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Destination;

const REQUESTS: usize = 32;
const ENTRIES: usize = 10;

/// A queue; a new one each round, as ElasticMQ slows down with what it holds (MEASURED section 4).
pub(crate) struct Queue {
    name: &'static str,
    endpoint: String,
    url: Option<String>,
    _server: ElasticMq,
    _proxy: Option<FaultProxy>,
}

impl Queue {
    /// Starts a server whose answers come late by so much.
    pub(crate) async fn start(name: &'static str, latency: Duration) -> Result<Self> {
        let server = ElasticMq::start().await?;
        let (mut endpoint, mut proxy) = (server.endpoint(), None);
        if latency > Duration::ZERO {
            let between = FaultProxy::start(&server.address())?;
            between.set_latency(latency / 2)?;
            endpoint = format!("http://{}", between.address());
            proxy = Some(between);
        }
        Ok(Queue { name, endpoint, url: None, _server: server, _proxy: proxy })
    }

    fn client(&self) -> Client {
        let settings = aws_sdk_sqs::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("bench", "bench", None, None, "bench"))
            .retry_config(RetryConfig::disabled())
            .endpoint_url(&self.endpoint);
        Client::from_conf(settings.build())
    }
}

#[async_trait]
impl Destination for Queue {
    fn name(&self) -> &'static str {
        self.name
    }

    fn events_max(&self) -> usize {
        20_000
    }

    async fn fresh(&mut self) -> Result<Value> {
        let client = self.client();
        if let Some(url) = self.url.take() {
            client.delete_queue().queue_url(url).send().await?;
        }
        let name = format!("bench-{}.fifo", Uuid::new_v4().simple());
        let queue = client.create_queue().queue_name(name).attributes(QueueAttributeName::FifoQueue, "true");
        let url = queue.send().await?.queue_url.context("a URL")?;
        self.url = Some(url.clone());
        Ok(json!({
            "queue_url": url, "endpoint": self.endpoint, "region": "us-east-1",
            "access_key_id": "bench", "secret_access_key": "bench",
        }))
    }

    async fn publish(&self, messages: Vec<Message>) -> Result<Duration> {
        let (client, url) = (self.client(), self.url.as_deref().context("a queue")?);
        let begin = Instant::now();
        let mut requests = JoinSet::new();
        for chunk in messages.chunks(ENTRIES) {
            if requests.len() >= REQUESTS {
                requests.join_next().await.context("a request")???;
            }
            let entries = chunk.iter().map(entry).collect::<Result<_>>()?;
            let request = client.send_message_batch().queue_url(url).set_entries(Some(entries));
            requests.spawn(async move {
                let output = request.send().await?;
                ensure!(output.failed.is_empty(), "{:?}", output.failed);
                anyhow::Ok(())
            });
        }
        while let Some(done) = requests.join_next().await {
            done??;
        }
        Ok(begin.elapsed())
    }

    async fn count(&self) -> Result<usize> {
        let url = self.url.as_deref().context("a queue")?;
        let attribute = QueueAttributeName::ApproximateNumberOfMessages;
        let asked = self.client().get_queue_attributes().queue_url(url).attribute_names(attribute.clone());
        let attributes = asked.send().await?.attributes.context("attributes")?;
        Ok(attributes.get(&attribute).context("a number")?.parse()?)
    }
}

/// With as many attributes as the connector sends.
fn entry(message: &Message) -> Result<SendMessageBatchRequestEntry> {
    let attribute = |value: &str| MessageAttributeValue::builder().data_type("String").string_value(value).build();
    let entry = SendMessageBatchRequestEntry::builder()
        .id(message.offset().to_string())
        .message_body(std::str::from_utf8(&message.body)?)
        .message_group_id(message.entity_ref.as_str())
        .message_deduplication_id(message.id.to_string())
        .message_attributes(BRIDGE_LOG_ID, attribute(&message.id.log_id.to_string())?)
        .message_attributes(BRIDGE_GENERATION, attribute(&message.id.generation.to_string())?)
        .message_attributes(BRIDGE_OFFSET, attribute(&message.offset().to_string())?)
        .message_attributes("event-type", attribute("updated")?)
        .message_attributes("kind", attribute("component")?)
        .message_attributes("content-type", attribute(message.content_type)?);
    Ok(entry.build()?)
}
