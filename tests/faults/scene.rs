//! The bridge of one cell: its store, its config, its daemons, and the harm done to them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::{Postgres, PostgresOptions};
use rand::Rng;
use rand::rngs::StdRng;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use crate::fault::Fault;
use crate::load::Target;
use crate::matrix::{Cell, StoreKind};
use crate::support::{Daemon, Place, Store, postgres_store};

/// The sink whose destination is harmed.
pub(crate) const SINK: &str = "harmed";
/// A healthy sink of the same daemon.
pub(crate) const HEALTHY: &str = "healthy";

/// A bridge that runs.
pub(crate) struct Scene {
    place: Place,
    config: String,
    store: StoreAtHand,
    daemons: Vec<Daemon>,
    /// Where writers and readers turn to.
    pub(crate) target: Target,
}

/// The store, with what harms it.
enum StoreAtHand {
    Sqlite {
        file: PathBuf,
        lock: Option<SqliteConnection>,
    },
    /// The server that all cells share, which is never harmed.
    Shared,
    Own {
        server: Box<Postgres>,
        is_killed: bool,
    },
}

impl Scene {
    /// Starts the daemons with this sink.
    pub(crate) async fn start(cell: &Cell, section: &str) -> Result<Self> {
        let place = Place::new()?;
        let (log, store) = match (cell.store, cell.fault) {
            (StoreKind::Sqlite, _) => {
                let file = place.path().join("log.db");
                (Store::Sqlite.log(&place)?, StoreAtHand::Sqlite { file, lock: None })
            }
            (StoreKind::Postgres, Fault::StoreAway) => {
                let server = Box::new(Postgres::start(PostgresOptions::default()).await?);
                (server.fresh_database("log").await?, StoreAtHand::Own { server, is_killed: false })
            }
            (StoreKind::Postgres, _) => (postgres_store().await?.log(&place)?, StoreAtHand::Shared),
        };
        let healthy = place.path().join("healthy.ndjson");
        let config = format!(
            "log: {log}\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n  {HEALTHY}: {{ file: {{ path: \"{}\" }}, encoding: json, start: earliest }}\n  {SINK}: {{ {section}, start: earliest }}\n",
            healthy.display()
        );
        let mut scene = Scene { place, config, store, daemons: Vec::new(), target: Target::default() };
        scene.start_daemon("a").await?;
        if cell.store == StoreKind::Postgres && cell.fault == Fault::DaemonFrozen {
            scene.start_daemon("b").await?;
        }
        Ok(scene)
    }

    async fn start_daemon(&mut self, name: &str) -> Result<()> {
        let daemon = self.place.start_named(name, &self.config).await?;
        self.target.set(&daemon);
        self.daemons.push(daemon);
        Ok(())
    }

    /// A daemon that works.
    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemons.last().expect("a scene has a daemon")
    }

    /// The file of the healthy sink.
    pub(crate) fn healthy_file(&self) -> PathBuf {
        self.place.path().join("healthy.ndjson")
    }

    /// Waits until the harmed sink's checkpoint is at `offset` or above.
    pub(crate) async fn reaches(&self, sink: &str, offset: u64) -> Result<()> {
        let daemon = self.daemon();
        daemon
            .wait_until(&format!("{sink} reaches {offset}"), async || {
                Ok(daemon.sink(sink).await?["checkpoint"].as_u64().is_some_and(|checkpoint| checkpoint >= offset))
            })
            .await
            .with_context(|| format!("the sinks: {:?}", self.last_words()))
    }

    fn last_words(&self) -> Vec<String> {
        self.daemons.iter().map(Daemon::log_tail).collect()
    }

    /// SIGKILL in mid-window.
    pub(crate) async fn kill_daemon(&mut self) -> Result<()> {
        let daemon = self.daemons.pop().context("a daemon")?;
        daemon
            .wait_until("something is on its way", async || {
                Ok(daemon.sink(SINK).await?["lagEvents"].as_u64().is_some_and(|lag| lag > 0))
            })
            .await?;
        daemon.kill()
    }

    /// Starts the killed daemon again.
    pub(crate) async fn revive_daemon(&mut self) -> Result<()> {
        self.start_daemon("a").await
    }

    /// SIGSTOP of the sink's owner; the other one, if there is one, has taken over when this returns.
    pub(crate) async fn freeze_owner(&mut self) -> Result<()> {
        let owner = self.owner().await?;
        // The last one is the one that works.
        let frozen = self.daemons.remove(owner);
        self.daemons.insert(0, frozen);
        if self.daemons.len() > 1 {
            self.target.set(self.daemon());
        }
        self.daemons[0].signal("STOP")?;
        if self.daemons.len() == 1 {
            // A lease lasts 15 s.
            tokio::time::sleep(Duration::from_secs(17)).await;
            return Ok(());
        }
        let taker = self.daemon();
        taker
            .wait_until("the other replica takes the sink over", async || Ok(owns(&taker.sink(SINK).await?, taker)))
            .await
    }

    /// SIGCONT.
    pub(crate) fn thaw_owner(&self) -> Result<()> {
        self.daemons[0].signal("CONT")
    }

    /// Which daemon owns the harmed sink.
    async fn owner(&self) -> Result<usize> {
        if self.daemons.len() == 1 {
            return Ok(0);
        }
        let found = std::cell::Cell::new(0);
        self.daemon()
            .wait_until("a replica owns the sink", async || {
                for (index, daemon) in self.daemons.iter().enumerate() {
                    if owns(&daemon.sink(SINK).await?, daemon) {
                        found.set(index);
                        return Ok(true);
                    }
                }
                Ok(false)
            })
            .await?;
        Ok(found.get())
    }

    /// The store is gone or frozen (PostgreSQL), or locked by somebody (SQLite).
    pub(crate) async fn take_store_away(&mut self, random: &mut StdRng) -> Result<()> {
        match &mut self.store {
            StoreAtHand::Sqlite { file, lock } => {
                let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(30));
                let mut connection = SqliteConnection::connect_with(&options).await?;
                sqlx::query("begin immediate").execute(&mut connection).await.context("locking the store's file")?;
                *lock = Some(connection);
            }
            StoreAtHand::Own { server, is_killed } => {
                *is_killed = random.random_bool(0.5);
                if *is_killed {
                    server.kill9().await?;
                } else {
                    server.pause()?;
                }
            }
            StoreAtHand::Shared => anyhow::bail!("the shared store is not harmed"),
        }
        Ok(())
    }

    /// Ends that.
    pub(crate) async fn bring_store_back(&mut self) -> Result<()> {
        match &mut self.store {
            StoreAtHand::Sqlite { lock, .. } => {
                lock.take().context("a lock")?.close().await?;
            }
            StoreAtHand::Own { server, is_killed: true } => server.start_again().await?,
            StoreAtHand::Own { server, is_killed: false } => server.resume()?,
            StoreAtHand::Shared => {}
        }
        Ok(())
    }

    /// Waits until the harmed sink says that something is wrong.
    pub(crate) async fn tells_trouble(&self) -> Result<()> {
        let daemon = self.daemon();
        daemon
            .wait_until("the sink tells its trouble", async || {
                let state = daemon.sink(SINK).await?["state"].as_str().unwrap_or_default().to_owned();
                Ok(matches!(state.as_str(), "misconfigured" | "diverged" | "retrying"))
            })
            .await
    }

    /// Follows the command that the daemon itself names.
    pub(crate) async fn rewind_to_snapshot(&self) -> Result<()> {
        let output =
            crate::support::cli(&["sinks", "rewind", SINK, "--to", "snapshot", "--admin", &self.daemon().admin])?;
        ensure!(output.status.success(), "sinks rewind: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// Whether a row of `/status` names this replica as the owner of the lease.
fn owns(row: &serde_json::Value, replica: &Daemon) -> bool {
    row["owner"].as_str().is_some_and(|owner| owner.contains(&format!("/{}/", replica.pid())))
}
