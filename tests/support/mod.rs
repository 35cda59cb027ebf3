//! The daemon as its users meet it: a real process with a config file, its REST, its admin listener and its signals.

pub mod catalog;
pub mod grants;
pub mod history;
pub mod kafka;
pub mod mirror;
pub mod triggers;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use catalog_bridge_api::{Event, Offset};
use catalog_bridge_history::Delivered;
use catalog_bridge_services as services;
use serde_json::Value;
use tempfile::TempDir;

/// One of the two stores that a test runs against.
#[derive(Debug, Clone)]
pub enum Store {
    /// The embedded default: a file below the test's place.
    Sqlite,
    /// A fresh database of the shared server.
    Postgres(String),
}

impl Store {
    /// What goes behind `log:` in the config.
    pub fn log(&self, place: &Place) -> Result<String> {
        Ok(match self {
            Store::Sqlite => format!("sqlite://{}/log.db", place.path().display()),
            Store::Postgres(url) => url.clone(),
        })
    }

    pub fn name(&self) -> &'static str {
        match self {
            Store::Sqlite => "SQLite",
            Store::Postgres(_) => "PostgreSQL",
        }
    }
}

/// Both stores, each empty.
pub async fn stores() -> Result<Vec<Store>> {
    Ok(vec![Store::Sqlite, postgres_store().await?])
}

/// An empty PostgreSQL store.
pub async fn postgres_store() -> Result<Store> {
    Ok(Store::Postgres(services::shared::fresh_database("log").await?))
}

/// An empty database for a catalog.
pub async fn catalog_database() -> Result<String> {
    services::shared::fresh_database("catalog").await
}

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_catalog-bridge");

/// A directory with one config file; daemons are started from it.
pub struct Place {
    directory: TempDir,
    config: PathBuf,
}

/// A running daemon. Killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    pub http: String,
    pub admin: String,
    client: reqwest::Client,
}

impl Place {
    /// An empty directory.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("catalog-bridge-test-").tempdir()?;
        let config = directory.path().join("catalog-bridge.yaml");
        Ok(Place { directory, config })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts a daemon with this config (without `http`, which is filled in with free ports) and waits until it serves.
    pub async fn start(&self, config: &str) -> Result<Daemon> {
        self.start_named("daemon", config).await
    }

    /// As `start`; the name keeps replicas of one place apart.
    pub async fn start_named(&self, name: &str, config: &str) -> Result<Daemon> {
        let daemon = self.spawn(name, config)?;
        daemon.ready().await?;
        Ok(daemon)
    }

    /// Starts a daemon and does not wait.
    pub fn spawn(&self, name: &str, config: &str) -> Result<Daemon> {
        let (http, admin) = (free_port()?, free_port()?);
        let text = format!("http: {{ listen: 127.0.0.1:{http}, admin: 127.0.0.1:{admin} }}\n{config}");
        let path = self.path().join(format!("{name}.yaml"));
        std::fs::write(&path, text)?;
        let log = self.path().join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(BINARY)
            .args(["run", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting the daemon")?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(90)).build()?;
        Ok(Daemon {
            child,
            log,
            http: format!("http://127.0.0.1:{http}"),
            admin: format!("http://127.0.0.1:{admin}"),
            client,
        })
    }
}

impl Daemon {
    /// Waits until the log is reachable.
    pub async fn ready(&self) -> Result<()> {
        self.wait_until("the daemon is ready", async || {
            Ok(self
                .client
                .get(format!("{}/readyz", self.http))
                .send()
                .await
                .is_ok_and(|reply| reply.status().is_success()))
        })
        .await
    }

    /// Waits for a condition, at most four minutes; then fails with what never came and the daemon's log.
    pub async fn wait_until(&self, what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let result = wait_until(what, condition).await;
        result.with_context(|| format!("the daemon's log ends:\n{}", self.log_tail()))
    }

    /// Waits until a sink's checkpoint is this offset.
    pub async fn wait_for_checkpoint(&self, sink: &str, offset: u64) -> Result<()> {
        let is_there = async || Ok(self.sink(sink).await?["checkpoint"].as_u64() == Some(offset));
        self.wait_until(&format!("{sink} reaches {offset}"), is_there).await
    }

    /// Waits until a sink is in this state and its row in `/status` holds these words.
    pub async fn wait_for_state(&self, sink: &str, state: &str, words: &str) -> Result<()> {
        let is_told = async || {
            let row = self.sink(sink).await?;
            Ok(row["state"] == state && row.to_string().contains(words))
        };
        self.wait_until(&format!("{sink} is {state} and says {words:?}"), is_told).await
    }

    /// The last lines that it wrote.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Everything that it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// GET below the API's base path; the reply must be 200.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.try_get(path).await?;
        if status != 200 {
            bail!("GET {path}: {status} {body}");
        }
        Ok(body)
    }

    /// GET below the API's base path, whatever the status.
    pub async fn try_get(&self, path: &str) -> Result<(u16, Value)> {
        let reply = self.client.get(format!("{}/api/catalog{path}", self.http)).send().await?;
        let status = reply.status().as_u16();
        Ok((status, serde_json::from_str(&reply.text().await?).unwrap_or(Value::Null)))
    }

    /// POSTs changes to an ingest source.
    pub async fn ingest(&self, source: &str, changes: &[Value]) -> Result<Value> {
        let url = format!("{}/api/catalog/sources/{source}/changes", self.http);
        let reply = self.client.post(url).json(&serde_json::json!({ "changes": changes })).send().await?;
        let status = reply.status();
        let text = reply.text().await?;
        if !status.is_success() {
            bail!("ingest: {status} {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// All events after `after`, as read now.
    pub async fn events(&self, after: Offset) -> Result<Vec<Event>> {
        let (mut events, mut at) = (Vec::new(), after);
        loop {
            let page = self.get(&format!("/events?offset={at}&wait=0&limit=1000")).await?;
            let read: Vec<Event> = serde_json::from_str(&page["events"].to_string())?;
            let next = Offset::new(page["lastEventOffset"].as_u64().context("lastEventOffset")?);
            if next == at {
                return Ok(events);
            }
            events.extend(read);
            at = next;
        }
    }

    /// The log's head.
    pub async fn head(&self) -> Result<Offset> {
        let page = self.get("/events/head").await?;
        Ok(Offset::new(page["headOffset"].as_u64().with_context(|| format!("headOffset in {page}"))?))
    }

    /// `/status` of the admin listener.
    pub async fn status(&self) -> Result<Value> {
        Ok(self.client.get(format!("{}/status", self.admin)).send().await?.error_for_status()?.json().await?)
    }

    /// The row of one sink in `/status`.
    pub async fn sink(&self, name: &str) -> Result<Value> {
        Ok(self.status().await?["sinks"][name].clone())
    }

    /// The row of one source in `/status`.
    pub async fn source(&self, name: &str) -> Result<Value> {
        Ok(self.status().await?["sources"][name].clone())
    }

    /// `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.client.get(format!("{}/metrics", self.http)).send().await?.error_for_status()?.text().await?)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill -{name} {}", self.pid());
        Ok(())
    }

    /// SIGTERM; returns the exit code.
    pub async fn stop(mut self) -> Result<i32> {
        self.signal("TERM")?;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("the daemon did not stop in 60 s:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// True while the process lives.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Peak resident memory in bytes.
    pub fn peak_memory_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("VmHWM")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the CLI to its end.
pub fn cli(arguments: &[&str]) -> Result<std::process::Output> {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().context("running the CLI")
}

/// Waits for a condition, at most four minutes.
pub async fn wait_until(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    loop {
        let last = condition().await;
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if begin.elapsed() > Duration::from_secs(240) {
            bail!("never came: {what}{}", last.err().map(|error| format!(" ({error:#})")).unwrap_or_default());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A component whose content depends on `version`.
pub fn component(name: &str, version: u64) -> Value {
    serde_json::json!({
        "apiVersion": "backstage.io/v1alpha1",
        "kind": "Component",
        "metadata": { "name": name, "namespace": "default", "annotations": { "example.com/version": version.to_string() } },
        "spec": { "type": "service", "lifecycle": "production", "owner": format!("team-{}", version % 3) },
    })
}

/// The change that upserts this component.
pub fn upsert(name: &str, version: u64) -> Value {
    serde_json::json!({ "upsert": component(name, version) })
}

/// The change that removes this component.
pub fn remove(name: &str) -> Value {
    serde_json::json!({ "remove": format!("component:default/{name}") })
}

/// The seed of a random test: from `CATALOG_BRIDGE_SEED`, else drawn; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("CATALOG_BRIDGE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::random::<u32>().into());
    eprintln!("CATALOG_BRIDGE_SEED={seed}");
    seed
}

/// Rounds of a test that repeats: few in plain `cargo test`, many in the long form.
pub fn rounds(short: usize, long: usize) -> usize {
    if std::env::var("CATALOG_BRIDGE_TEST").is_ok_and(|form| form == "long") { long } else { short }
}

/// The NDJSON lines of a file sink that are whole.
pub fn read_lines(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The lines of a file sink with `encoding: json`, as the judge wants them.
pub fn delivered_lines(path: &Path) -> Result<Vec<Delivered>> {
    read_lines(path)?
        .into_iter()
        .map(|line| {
            Ok(Delivered {
                offset: Offset::new(line["bridgeoffset"].as_str().context("bridgeoffset")?.parse()?),
                key: line["entityRef"].as_str().context("entityRef")?.to_owned(),
                generation: line["bridgegeneration"].as_str().context("bridgegeneration")?.parse()?,
                bytes: line.to_string().into_bytes(),
            })
        })
        .collect()
}
