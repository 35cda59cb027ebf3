//! The server that the tests share, its queues, and reading them back.

use std::sync::atomic::{AtomicU64, Ordering as Atomic};

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message, QueueAttributeName as Name};
use catalog_bridge_api::{
    BRIDGE_GENERATION, BRIDGE_OFFSET, BuildContext, Connector, ConnectorKind, Ordering, SinkName,
};
use catalog_bridge_conformance::Delivered;
use catalog_bridge_services::ElasticMq;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

/// A well one.
pub(crate) async fn shared() -> Result<&'static ElasticMq> {
    static SHARED: OnceCell<ElasticMq> = OnceCell::const_new();
    SHARED.get_or_try_init(start).await
}

/// On a thread that may block: the kit wants futures that may move between threads, and starting a server is none.
pub(crate) async fn start() -> Result<ElasticMq> {
    tokio::task::spawn_blocking(|| Handle::current().block_on(ElasticMq::start())).await?
}

/// A name that no other test has.
pub(crate) fn fresh(stem: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{stem}-{}.fifo", NEXT.fetch_add(1, Atomic::Relaxed))
}

/// The section of a sink whose requests go to `endpoint`.
pub(crate) fn section(endpoint: &str, queue: &str) -> Value {
    json!({
        "queue_url": format!("http://sqs.invalid/000000000000/{queue}"),
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "conformance",
        "secret_access_key": "s3cret-conformance",
    })
}

pub(crate) fn build(section: Value) -> Result<Box<dyn Connector>> {
    build_for(section, false, Ordering::Entity)
}

pub(crate) fn build_for(section: Value, ensure: bool, ordering: Ordering) -> Result<Box<dyn Connector>> {
    let context = BuildContext { sink: SinkName::parse("conformance")?, ordering, ensure };
    Ok(catalog_bridge_sqs::KIND.build(section, context)?)
}

/// The tests' own client.
pub(crate) fn client(endpoint: &str) -> Client {
    let settings = aws_sdk_sqs::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("reader", "reader", None, None, "tests"))
        .endpoint_url(endpoint);
    Client::from_conf(settings.build())
}

pub(crate) async fn create(client: &Client, queue: &str, attributes: &[(Name, &str)]) -> Result<()> {
    let mut request = client.create_queue().queue_name(queue).attributes(Name::FifoQueue, "true");
    for (name, value) in attributes {
        request = request.attributes(name.clone(), *value);
    }
    request.send().await.context("creating a queue")?;
    Ok(())
}

pub(crate) async fn url(client: &Client, queue: &str) -> Result<String> {
    let found = client.get_queue_url().queue_name(queue).send().await.context("finding a queue")?;
    found.queue_url.context("a URL")
}

/// Takes everything out of a queue, in its order within each group.
pub(crate) async fn take_all(client: &Client, queue: &str) -> Result<Vec<Message>> {
    let url = url(client, queue).await?;
    let mut taken = Vec::new();
    loop {
        let received = client
            .receive_message()
            .queue_url(&url)
            .max_number_of_messages(10)
            .message_attribute_names("All")
            .message_system_attribute_names(aws_sdk_sqs::types::MessageSystemAttributeName::All)
            .send()
            .await?
            .messages
            .unwrap_or_default();
        if received.is_empty() {
            return Ok(taken);
        }
        let mut delete = client.delete_message_batch().queue_url(&url);
        for (number, message) in received.iter().enumerate() {
            let handle = message.receipt_handle().context("a handle")?;
            let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string()).receipt_handle(handle);
            delete = delete.entries(entry.build()?);
        }
        let deleted = delete.send().await?;
        ensure!(deleted.failed.is_empty(), "{:?}", deleted.failed);
        taken.extend(received);
    }
}

pub(crate) fn attribute<'message>(message: &'message Message, name: &str) -> Result<&'message str> {
    let attribute = message.message_attributes().and_then(|attributes| attributes.get(name));
    attribute.and_then(|attribute| attribute.string_value()).with_context(|| format!("attribute {name}"))
}

pub(crate) fn delivered(message: &Message) -> Result<Delivered> {
    let body: Value = serde_json::from_str(message.body().context("a body")?)?;
    let mut attributes: Vec<String> =
        message.message_attributes().into_iter().flatten().map(|(name, value)| format!("{name}={value:?}")).collect();
    attributes.sort();
    Ok(Delivered {
        offset: attribute(message, BRIDGE_OFFSET)?.parse::<u64>()?.into(),
        key: body["subject"].as_str().context("a subject")?.to_owned(),
        generation: attribute(message, BRIDGE_GENERATION)?.parse()?,
        bytes: format!("{body} {attributes:?}").into_bytes(),
    })
}
