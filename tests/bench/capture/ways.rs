//! The ways of capture that are compared, on one catalog.

use anyhow::{Context, Result, ensure};

use crate::support::{Daemon, Place, cli, grants};

/// One way, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Nothing,
    Generations,
    Reconcile,
    Triggers,
}

impl Way {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Way::Nothing => "nothing",
            Way::Generations => "generations",
            Way::Reconcile => "reconcile",
            Way::Triggers => "triggers",
        }
    }
}

/// A catalog's database, with the bridge's role in it.
pub(crate) struct Captured {
    place: Place,
    owner_url: String,
    bridge_url: String,
    schema: String,
}

impl Captured {
    pub(crate) async fn new(owner_url: &str, schema: &str, ways: &[Way]) -> Result<Self> {
        let rights: &[&str] = if ways.contains(&Way::Triggers) { &["--triggers"] } else { &[] };
        let bridge_url = grants::grant(owner_url, schema, rights).await?;
        let place = Place::new()?;
        Ok(Captured { place, owner_url: owner_url.to_owned(), bridge_url, schema: schema.to_owned() })
    }

    /// The config of this way; further keys of the source by `keys`. Benches take everything away, and nobody confirms it.
    fn config(&self, way: Way, keys: &str) -> String {
        format!(
            "log: sqlite://{}/{}.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", schema: {}, capture: {}, removal_guard: off{keys} }} }} }}\n",
            self.place.path().display(),
            way.name(),
            self.bridge_url,
            self.schema,
            way.name(),
        )
    }

    /// Starts a daemon that captures by this way (its triggers are installed before), and waits until it is caught up.
    pub(crate) async fn start(&self, way: Way, keys: &str) -> Result<Option<Daemon>> {
        if way == Way::Nothing {
            return Ok(None);
        }
        if way == Way::Triggers {
            self.command(&["source", "install", "--url", &self.owner_url, "--role", grants::ROLE]).await?;
        }
        let daemon = self.place.start(&self.config(way, keys)).await?;
        self.caught_up(&daemon).await?;
        Ok(Some(daemon))
    }

    /// Waits until the first or repairing reconcile ended; a million entities take a while.
    async fn caught_up(&self, daemon: &Daemon) -> Result<()> {
        loop {
            let source = daemon.source("backstage").await?;
            if source["state"] == "running" && source["detail"]["lastReconcile"].is_object() {
                return Ok(());
            }
            ensure!(source["state"] != "misconfigured", "{source}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    /// Stops it, and takes the triggers away.
    pub(crate) async fn stop(&self, way: Way, daemon: Option<Daemon>) -> Result<()> {
        if let Some(daemon) = daemon {
            daemon.stop().await?;
        }
        if way == Way::Triggers {
            self.command(&["source", "uninstall", "--url", &self.owner_url]).await?;
        }
        Ok(())
    }

    /// Installs the triggers without any daemon that drains them.
    pub(crate) async fn install(&self) -> Result<()> {
        self.command(&["source", "install", "--url", &self.owner_url, "--role", grants::ROLE]).await
    }

    /// Takes them away.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        self.command(&["source", "uninstall", "--url", &self.owner_url]).await
    }

    async fn command(&self, words: &[&str]) -> Result<()> {
        let path = self.place.path().join("command.yaml");
        let listeners = "http: { listen: 127.0.0.1:1, admin: 127.0.0.1:2 }\n";
        std::fs::write(&path, format!("{listeners}{}", self.config(Way::Triggers, "")))?;
        let path = path.display().to_string();
        let output = cli(&[words, &["--config", &path]].concat()).with_context(|| format!("{words:?}"))?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
