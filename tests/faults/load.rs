//! What goes on beside a fault: somebody writes, somebody reads by REST, and a healthy sink's file grows. Each notes when.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::Seen;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::scene::SINK;
use crate::support::{Daemon, remove, upsert};

/// Entities that are written.
const ENTITIES: u64 = 200;
/// Changes of one request.
const BATCH: u64 = 20;
/// Between two requests.
const PACE: Duration = Duration::from_millis(40);
/// As much is written without a pause at first.
const BURST_BATCHES: u64 = 50;

/// The daemon that clients turn to, by its two listeners; another one after a restart or a hand-over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Target(Arc<Mutex<(String, String)>>);

impl Target {
    pub(crate) fn set(&self, daemon: &Daemon) {
        let urls = (format!("{}/api/catalog", daemon.http), format!("{}/status", daemon.admin));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = urls;
    }

    fn url(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn status_url(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// When an offset was there.
type Marks = Mutex<Vec<(u64, Instant)>>;

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    written: Marks,
    read: Marks,
    filed: Marks,
    seen: Mutex<Vec<Seen>>,
    failures: AtomicU64,
}

/// Writer, reader and watchers of one cell. Dropped, they end.
pub(crate) struct Load {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    /// What the reader found wrong.
    broken: Arc<Mutex<Option<String>>>,
}

/// Milliseconds from a write's answer to its arrival.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) median: f64,
    pub(crate) most: f64,
}

/// Who has it at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follower {
    Reader,
    HealthySink,
}

impl Load {
    /// Begins at offset 0.
    pub(crate) fn start(target: &Target, file: PathBuf) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let broken = Arc::new(Mutex::new(None));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(8)).build()?;
        let writer = tokio::spawn(write(shared.clone(), target.clone(), client.clone()));
        let reader = tokio::spawn({
            let (shared, target, broken, client) = (shared.clone(), target.clone(), broken.clone(), client.clone());
            async move {
                if let Err(error) = read(&shared, &target, &client).await {
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
                }
            }
        });
        let watcher = tokio::spawn(watch(shared.clone(), file));
        let observer = tokio::spawn(observe(shared.clone(), target.clone(), client));
        Ok(Load { shared, writer: Some(writer), others: vec![reader, watcher, observer], broken })
    }

    /// The last offset whose write was answered.
    pub(crate) fn written(&self) -> u64 {
        last(&self.shared.written)
    }

    /// Waits until so much is written.
    pub(crate) async fn writes(&self, offset: u64) -> Result<()> {
        crate::support::wait_until(&format!("{offset} is written"), async || Ok(self.written() >= offset)).await
    }

    /// Waits until this follower has come so far.
    pub(crate) async fn follows(&self, follower: Follower, offset: u64) -> Result<()> {
        let marks = self.marks(follower);
        crate::support::wait_until(&format!("{follower:?} comes to {offset}"), async || {
            self.intact()?;
            Ok(last(marks) >= offset)
        })
        .await
    }

    /// The stored checkpoints of the harmed sink, as `/status` showed them.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last of these.
    pub(crate) fn checkpoint(&self) -> Offset {
        self.seen().last().map_or(Offset::ZERO, |seen| seen.checkpoint)
    }

    /// How often a request failed so far.
    pub(crate) fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::SeqCst)
    }

    /// Ends writing, after the request that is under way.
    pub(crate) async fn stop_writing(&mut self) -> Result<()> {
        self.shared.is_over.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            writer.await?;
        }
        Ok(())
    }

    /// What was written in this span, as one follower saw it.
    pub(crate) fn latency(&self, follower: Follower, from: Instant, to: Instant) -> Option<Latency> {
        let written = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
        let arrived = self.marks(follower).lock().unwrap_or_else(PoisonError::into_inner);
        let mut later = arrived.iter().peekable();
        let mut waits = Vec::new();
        for (offset, at) in written.iter() {
            while later.next_if(|(reached, _)| reached < offset).is_some() {}
            let Some((_, there)) = later.peek() else { break };
            if (from..to).contains(at) {
                waits.push(there.saturating_duration_since(*at).as_secs_f64() * 1000.0);
            }
        }
        waits.sort_by(f64::total_cmp);
        Some(Latency { median: *waits.get(waits.len() / 2)?, most: *waits.last()? })
    }

    fn intact(&self) -> Result<()> {
        match &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(words) => bail!("the reader: {words}"),
            None => Ok(()),
        }
    }

    fn marks(&self, follower: Follower) -> &Marks {
        match follower {
            Follower::Reader => &self.shared.read,
            Follower::HealthySink => &self.shared.filed,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.writer.iter().chain(&self.others).for_each(JoinHandle::abort);
    }
}

fn last(marks: &Marks) -> u64 {
    marks.lock().unwrap_or_else(PoisonError::into_inner).last().map_or(0, |(offset, _)| *offset)
}

fn note(marks: &Marks, offset: u64) {
    marks.lock().unwrap_or_else(PoisonError::into_inner).push((offset, Instant::now()));
}

/// Writes for ever; a request that fails is made again, as upserts and removals may be.
async fn write(shared: Arc<Shared>, target: Target, client: reqwest::Client) {
    for batch in 0.. {
        let mut changes: Vec<Value> = (0..BATCH - 1)
            .map(|step| upsert(&format!("e{}", (batch * 17 + step * 3) % ENTITIES), batch * BATCH + step))
            .collect();
        changes.push(remove(&format!("e{}", batch * 11 % ENTITIES)));
        let body = json!({ "changes": changes });
        loop {
            if shared.is_over.load(Ordering::SeqCst) {
                return;
            }
            let url = format!("{}/sources/push/changes", target.url());
            match post(&client, &url, &body).await {
                Ok(offset) => {
                    note(&shared.written, offset);
                    break;
                }
                Err(_) => {
                    shared.failures.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if batch >= BURST_BATCHES {
            tokio::time::sleep(PACE).await;
        }
    }
}

async fn post(client: &reqwest::Client, url: &str, body: &Value) -> Result<u64> {
    let reply: Value = client.post(url).json(body).send().await?.error_for_status()?.json().await?;
    reply["lastEventOffset"].as_u64().ok_or_else(|| anyhow::anyhow!("{reply}"))
}

/// Follows by long poll; what it sees is dense (P1).
async fn read(shared: &Shared, target: &Target, client: &reqwest::Client) -> Result<()> {
    let mut at = 0;
    loop {
        let url = format!("{}/events?offset={at}&wait=5&limit=500", target.url());
        let Ok(page) = get(client, &url).await else {
            shared.failures.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        for event in page["events"].as_array().into_iter().flatten() {
            ensure!(event["offset"].as_u64() == Some(at + 1), "after {at} came {event}");
            at += 1;
        }
        ensure!(
            page["lastEventOffset"].as_u64() == Some(at),
            "lastEventOffset after {at}: {}",
            page["lastEventOffset"]
        );
        note(&shared.read, at);
    }
}

async fn get(client: &reqwest::Client, url: &str) -> Result<Value> {
    Ok(client.get(url).send().await?.error_for_status()?.json().await?)
}

/// Line N of the healthy file is offset N, as its sink has no filter and begins at the beginning.
async fn watch(shared: Arc<Shared>, path: PathBuf) {
    let (mut lines, mut bytes) = (0, 0);
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let Ok(length) = std::fs::metadata(&path).map(|metadata| metadata.len()) else { continue };
        if length > bytes {
            let grown = read_from(&path, bytes).unwrap_or_default();
            bytes += grown.len() as u64;
            lines += grown.iter().filter(|byte| **byte == b'\n').count() as u64;
            note(&shared.filed, lines);
        } else if length < bytes {
            // A torn line was cut off; it had no end yet.
            bytes = length;
        }
    }
}

/// Looks at the harmed sink's row for ever. Of a sink that another replica owns, or owned,
/// it says what is stored.
async fn observe(shared: Arc<Shared>, target: Target, client: reqwest::Client) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let url = target.status_url();
        let Ok(status) = get(&client, &url).await else { continue };
        let sink = &status["sinks"][SINK];
        let (Some(generation), Some(checkpoint)) = (sink["generation"].as_u64(), sink["checkpoint"].as_u64()) else {
            continue;
        };
        // The row and the worker tell of the same generation, but for a moment after a rewind or a hand-over.
        if sink["detail"]["generation"].as_u64() != Some(generation) {
            continue;
        }
        // A daemon that was replaced meanwhile may have answered late.
        if target.status_url() == url {
            let seen = Seen { generation, checkpoint: checkpoint.into() };
            shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        }
    }
}

fn read_from(path: &std::path::Path, bytes: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(bytes))?;
    let mut grown = Vec::new();
    file.read_to_end(&mut grown)?;
    Ok(grown)
}
