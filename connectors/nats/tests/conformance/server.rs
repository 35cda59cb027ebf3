//! The NATS server that tests which harm nothing share, servers of their own, and what a stream holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use async_nats::ServerAddr;
use async_nats::jetstream::{self, consumer::pull, stream};
use catalog_bridge_history::Delivered;
use catalog_bridge_services::{Nats, NatsOptions};
use futures::StreamExt;
use tokio::sync::OnceCell;

/// The shared server.
pub(crate) async fn shared() -> &'static Nats {
    static SHARED: OnceCell<Nats> = OnceCell::const_new();
    SHARED.get_or_init(|| async { own().await.expect("NATS starts") }).await
}

/// A server of one test's own, to be harmed.
pub(crate) async fn own() -> Result<Nats> {
    Nats::start(NatsOptions::default()).await
}

/// A name that no other test uses.
pub(crate) fn new_name(purpose: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{purpose}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// JetStream on a server, or on several whose addresses are separated by commas.
pub(crate) async fn jetstream(url: &str) -> Result<jetstream::Context> {
    let servers = url.split(',').map(str::parse).collect::<Result<Vec<ServerAddr>, _>>()?;
    Ok(jetstream::new(async_nats::connect(servers).await?))
}

/// Creates a stream of a new name.
pub(crate) async fn create(url: &str, purpose: &str) -> Result<String> {
    create_with(url, purpose, stream::Config::default()).await
}

/// Creates a stream of a new name with further settings.
pub(crate) async fn create_with(url: &str, purpose: &str, settings: stream::Config) -> Result<String> {
    create_replicated(url, purpose, 1, settings).await
}

/// Creates a stream of a new name with so many replicas.
pub(crate) async fn create_replicated(
    url: &str,
    purpose: &str,
    num_replicas: usize,
    settings: stream::Config,
) -> Result<String> {
    let name = new_name(purpose);
    let subjects = vec![format!("{name}.>")];
    let config = stream::Config { name: name.clone(), subjects, num_replicas, ..settings };
    jetstream(url).await?.create_stream(config).await?;
    Ok(name)
}

/// One message of a stream.
pub(crate) struct Record {
    pub(crate) subject: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Record {
    /// The event's offset; `None` for a message of somebody else.
    pub(crate) fn offset(&self) -> Option<u64> {
        self.headers.get("catalog-bridge-offset")?.parse().ok()
    }
}

/// Everything that a stream holds, in its order.
pub(crate) async fn read(url: &str, name: &str) -> Result<Vec<Record>> {
    let mut stream = jetstream(url).await?.get_stream(name).await?;
    let count = usize::try_from(stream.info().await?.state.messages)?;
    let config = pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let mut records = Vec::with_capacity(count);
    while records.len() < count {
        let message = messages.next().await.context("the stream ended")??;
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        let headers = headers.filter_map(|(key, values)| Some((key.to_string(), values.first()?.to_string())));
        records.push(Record {
            subject: message.subject.to_string(),
            headers: headers.collect(),
            body: message.payload.to_vec(),
        });
    }
    Ok(records)
}

/// The offsets of a stream's messages, in its order; messages of others are left out.
pub(crate) fn offsets(records: &[Record]) -> Vec<u64> {
    records.iter().filter_map(Record::offset).collect()
}

/// What was delivered, for the history checker; messages of others are left out.
pub(crate) fn delivered(records: &[Record]) -> Vec<Delivered> {
    let entry = |record: &Record| {
        // What ties a message to its place in the stream differs between repetitions.
        let mut headers: Vec<_> =
            record.headers.iter().filter(|(name, _)| !name.starts_with("Nats-Expected")).collect();
        headers.sort();
        Some(Delivered {
            offset: record.offset()?.into(),
            key: percent_decoded(&record.headers["ce-subject"]),
            generation: record.headers["catalog-bridge-generation"].parse().expect("a number"),
            bytes: format!("{headers:?}{:?}", record.body).into_bytes(),
        })
    };
    records.iter().filter_map(entry).collect()
}

/// A header's value as it was before the NATS binding of CloudEvents encoded it.
fn percent_decoded(value: &str) -> String {
    let mut parts = value.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("two hexadecimal digits"));
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).expect("UTF-8")
}
