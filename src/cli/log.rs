//! `log`: the event log as a whole.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::output::{print, print_json};
use super::run::refuse_missing_directory;
use super::{Global, Output};
use crate::store;

/// How long the store may take; a SQLite file that a daemon uses is never free.
const OPEN_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, Subcommand)]
pub(super) enum Log {
    /// Gives the log a new id, after its database or file was restored from an older copy: every reader begins again, and every
    /// sink gets a new generation.
    NewId(NewId),
}

#[derive(Debug, Args)]
pub(super) struct NewId {
    /// Why, for the daemon's log.
    #[arg(long, default_value = "by hand")]
    reason: String,
    /// Writes to the store itself, while no daemon runs: right after a restore, before the first start.
    #[arg(long)]
    offline: bool,
}

impl Log {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        match self {
            Log::NewId(new_id) => new_id.run(global).await,
        }
    }
}

impl NewId {
    async fn run(&self, global: &Global) -> Result<()> {
        let reply = if self.offline {
            self.write(global).await?
        } else {
            Client::operators(global)?.post("/log/new-id", &[("reason", self.reason.clone())]).await?
        };
        match (global.output, reply.get("logId").and_then(Value::as_str)) {
            (Output::Text, Some(id)) => print(&format!("the log's id is now {id}; every reader begins again")),
            _ => print_json(&reply),
        }
    }

    async fn write(&self, global: &Global) -> Result<Value> {
        let config = global.load()?;
        refuse_missing_directory(&config.store.backend)?;
        let opened = tokio::time::timeout(OPEN_MAX, store::open(&config.store, store::Metrics::default())).await;
        let Ok(opened) = opened else {
            bail!("the log could not be opened in time; if a daemon runs, leave --offline out");
        };
        let store = opened.context("opening the log")?;
        let id = store.new_log_id(&self.reason).await.context("giving the log a new id")?;
        Ok(json!({ "logId": id }))
    }
}
