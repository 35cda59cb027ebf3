//! The queue: what it must be, what it should be, and making one.
//!
//! Reads its attributes; writes nothing but, with `ensure`, a queue that is not there.

use std::collections::HashMap;

use aws_sdk_sqs::types::QueueAttributeName as Name;
use catalog_bridge_api::{CheckReport, ConnectorError};
use serde_json::{Value, json};

use crate::client::Client;
use crate::config::Config;
use crate::errors::{self, Failure, Verdict};

/// FIFO queues look for deliverable messages among so many only.
const SCANNED_MAX: u64 = 120_000;
const DAY_SECONDS: u64 = 24 * 60 * 60;
/// The service's longest: a consumer that is away for a weekend loses nothing.
const RETENTION_SECONDS: u64 = 14 * DAY_SECONDS;

/// Of an existing queue.
struct Attributes(HashMap<Name, String>);

impl Attributes {
    /// An empty text where the server does not know the attribute.
    fn text(&self, name: &Name) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &Name) -> Option<u64> {
        self.text(name).parse().ok()
    }

    fn is_true(&self, name: &Name) -> bool {
        self.text(name) == "true"
    }
}

/// Looks at the queue; the report says what is missing.
pub(crate) async fn check(client: &Client, config: &Config, ensure: bool) -> Result<CheckReport, ConnectorError> {
    let mut report = CheckReport::default();
    match find(client).await? {
        Ok(attributes) => {
            refuse_unfit(client, &attributes)?;
            judge(config, &attributes, &mut report);
        }
        Err(_) if ensure => {
            report.facts.push(format!("queue {} does not exist and will be created", client.queue_name));
        }
        Err(words) => return Err(errors::missing(&client.endpoint, &words)),
    }
    Ok(report)
}

/// Before a session: the queue is there, or made. Returns what the next session must know of it.
pub(crate) async fn prepare(client: &Client, ensure: bool, known: Option<&Value>) -> Result<Value, ConnectorError> {
    let attributes = match find(client).await? {
        Ok(attributes) => attributes,
        // A queue that this sink knew, and that is gone with what it held, is not silently replaced by an empty one.
        Err(words) if ensure && known.is_some() => {
            let reason = format!(
                "the queue existed and is gone: {words}; create it, and rewind the sink if what it held must come again"
            );
            return Err(ConnectorError::misconfigured(&*client.endpoint, reason));
        }
        Err(_) if ensure => {
            create(client).await?;
            find(client)
                .await?
                .map_err(|words| ConnectorError::transient("find the new queue", &*client.endpoint, words))?
        }
        Err(words) => return Err(errors::missing(&client.endpoint, &words)),
    };
    refuse_unfit(client, &attributes)?;
    let state = json!({ "created": attributes.text(&Name::CreatedTimestamp) });
    if known.is_some_and(|known| *known != state) {
        tracing::warn!(queue = client.endpoint, "the queue was made anew: what the former one held is not in it");
    }
    Ok(state)
}

/// The queue's attributes; the inner error is the service's word that there is no such queue.
async fn find(client: &Client) -> Result<Result<Attributes, String>, ConnectorError> {
    let asked = client.sqs.get_queue_attributes().queue_url(&client.queue_url).attribute_names(Name::All).send().await;
    match asked {
        Ok(output) => Ok(Ok(Attributes(output.attributes.unwrap_or_default()))),
        Err(error) => match Failure::of(&error) {
            Failure { verdict: Verdict::Missing, words } => Ok(Err(words)),
            failure => Err(failure.into_error("read the queue's attributes", &client.endpoint)),
        },
    }
}

async fn create(client: &Client) -> Result<(), ConnectorError> {
    let attributes = [
        (Name::FifoQueue, "true".to_owned()),
        (Name::DeduplicationScope, "messageGroup".to_owned()),
        (Name::FifoThroughputLimit, "perMessageGroupId".to_owned()),
        (Name::MessageRetentionPeriod, RETENTION_SECONDS.to_string()),
    ];
    let request = client.sqs.create_queue().queue_name(&client.queue_name);
    let created = request.set_attributes(Some(attributes.into())).send().await;
    let created = created.map_err(|error| Failure::of(&error).into_error("create the queue", &client.endpoint))?;
    let url = created.queue_url().unwrap_or_default();
    tracing::info!(queue = url, "the queue was created");
    // Host names of one server differ; account and name do not.
    let path = |url: &str| url::Url::parse(url).map(|url| url.path().to_owned()).unwrap_or_default();
    if path(url) == path(&client.queue_url) {
        return Ok(());
    }
    let reason = format!("these credentials created {url}, another queue than queue_url names; correct queue_url");
    Err(ConnectorError::misconfigured(&*client.endpoint, reason))
}

fn refuse_unfit(client: &Client, attributes: &Attributes) -> Result<(), ConnectorError> {
    if attributes.is_true(&Name::FifoQueue) {
        return Ok(());
    }
    Err(ConnectorError::misconfigured(&*client.endpoint, "is no FIFO queue and keeps no order; name one"))
}

fn judge(config: &Config, attributes: &Attributes, report: &mut CheckReport) {
    let CheckReport { facts, warnings } = report;
    let held = attributes.number(&Name::ApproximateNumberOfMessages).unwrap_or_default();
    facts.push(format!("FIFO queue {} holds {held} messages", config.queue_name()));
    if held > SCANNED_MAX {
        warnings.push(format!(
            "{held} messages wait: the service looks for deliverable ones among the first {SCANNED_MAX} only, so a few \
             entities that nobody consumes hold up all others"
        ));
    }
    let is_high = attributes.text(&Name::DeduplicationScope) == "messageGroup"
        && attributes.text(&Name::FifoThroughputLimit) == "perMessageGroupId";
    if is_high {
        facts.push("high throughput is on".to_owned());
    } else {
        warnings.push(
            "high throughput is off, 300 requests a second are the limit: set DeduplicationScope to messageGroup and \
             FifoThroughputLimit to perMessageGroupId"
                .to_owned(),
        );
    }
    if let Some(size_max) = attributes.number(&Name::MaximumMessageSize)
        && size_max < config.message_bytes_max as u64
    {
        warnings.push(format!(
            "the queue's MaximumMessageSize is {size_max}: set message_bytes_max to it, or larger events are refused \
             instead of sent as references"
        ));
    }
    judge_keeping(attributes, facts, warnings);
}

fn judge_keeping(attributes: &Attributes, facts: &mut Vec<String>, warnings: &mut Vec<String>) {
    let retention = attributes.number(&Name::MessageRetentionPeriod).unwrap_or(RETENTION_SECONDS);
    let days = format!("{:.1} days", retention as f64 / DAY_SECONDS as f64);
    if retention < 4 * DAY_SECONDS {
        warnings.push(format!("messages are dropped after {days}: set MessageRetentionPeriod to {RETENTION_SECONDS}"));
    }
    match attributes.text(&Name::RedrivePolicy) {
        "" => facts.push(format!(
            "no redrive policy: a message that consumers cannot process holds up its entity until it is dropped after {days}"
        )),
        policy => facts.push(format!(
            "redrive policy {policy}: a message that moves to the dead-letter queue is passed by the later ones of its entity"
        )),
    }
    match attributes.text(&Name::KmsMasterKeyId) {
        "" if attributes.is_true(&Name::SqsManagedSseEnabled) => facts.push("encrypted with a key of SQS".to_owned()),
        "" => warnings.push("messages are not encrypted: set SqsManagedSseEnabled or KmsMasterKeyId".to_owned()),
        key => facts.push(format!("encrypted with KMS key {key}: the sink needs kms:GenerateDataKey and kms:Decrypt")),
    }
}
