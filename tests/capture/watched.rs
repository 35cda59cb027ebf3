//! A real Backstage, watched by one daemon for each way of capture: a driven change must give each of them the same events.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{Event, Offset};
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};
use catalog_bridge_services::{Backstage, BackstageOptions, BackstageVersion, PostgresVersion};
use serde_json::Value;

use crate::servers;
use crate::support::catalog::read_truth;
use crate::support::{Daemon, Place, cli, grants, wait_until};

/// The source's name in each config.
const SOURCE: &str = "backstage";

/// The way that has to be installed.
const TRIGGERS: &str = "triggers";

/// One Backstage and its watchers.
pub(crate) struct Watched {
    pub(crate) backstage: Backstage,
    pub(crate) watchers: Vec<Watcher>,
}

/// A daemon that captures by one way.
pub(crate) struct Watcher {
    pub(crate) way: &'static str,
    pub(crate) place: Place,
    pub(crate) daemon: Daemon,
}

impl Watched {
    /// Starts both, the daemons by a role that has what `source grants --print` names.
    pub(crate) async fn start(options: BackstageOptions, ways: &[&'static str]) -> Result<Self> {
        let is_new = options.version == BackstageVersion::New;
        let backstage = Backstage::start(servers::postgres(PostgresVersion::V17).await?, options).await?;
        let (url, schema) = (backstage.database_url(), backstage.schema());
        let mut rights = Vec::new();
        if !is_new {
            rights.push("--without-generations");
        }
        if ways.contains(&TRIGGERS) {
            rights.push("--triggers");
        }
        let bridge_url = grants::grant(url, schema, &rights).await?;
        let mut watchers = Vec::new();
        for way in ways {
            let place = Place::new()?;
            let config = format!(
                "log: sqlite://{}/log.db\nsources: {{ {SOURCE}: {{ backstage-db: {{ url: \"{bridge_url}\", schema: {schema}, capture: {way}, reconcile_only_interval: 200ms }} }} }}\n",
                place.path().display()
            );
            if *way == TRIGGERS {
                install(&place, &config)?;
            }
            let daemon = place.start(&config).await?;
            watchers.push(Watcher { way, place, daemon });
        }
        let watched = Watched { backstage, watchers };
        watched.settle("the beginning").await?;
        Ok(watched)
    }

    pub(crate) async fn truth(&self) -> Result<Truth> {
        read_truth(self.backstage.database_url(), self.backstage.schema()).await
    }

    /// Waits until the catalog is in a state.
    pub(crate) async fn wait_for(&self, what: &str, is_so: impl Fn(&Truth) -> bool) -> Result<()> {
        wait_until(what, async || Ok(is_so(&self.truth().await?))).await
    }

    /// Waits until Backstage has nothing more to do and every log holds what it holds; returns what that is.
    pub(crate) async fn settle(&self, what: &str) -> Result<Truth> {
        self.backstage.wait_idle().await.with_context(|| what.to_owned())?;
        let truth = self.truth().await?;
        for watcher in &self.watchers {
            watcher
                .daemon
                .wait_until("log = truth", async || {
                    Ok(live_state(Truth::new(), &watcher.daemon.events(Offset::ZERO).await?)? == truth)
                })
                .await
                .with_context(|| format!("{what}, by {}", watcher.way))?;
        }
        Ok(truth)
    }

    /// Drives one change and checks that each daemon tells exactly these events: for each ref what happened to it, in order
    /// (`removed added`). A word with a `*` may come any number of times: Backstage itself decides.
    pub(crate) async fn step(
        &self,
        what: &str,
        drive: impl AsyncFnOnce() -> Result<()>,
        expected: &[(&str, &str)],
    ) -> Result<()> {
        let mut before = Vec::new();
        for watcher in &self.watchers {
            before.push(watcher.daemon.head().await?);
        }
        drive().await.with_context(|| what.to_owned())?;
        self.settle(what).await?;
        for (watcher, after) in self.watchers.iter().zip(before) {
            let told = told(&watcher.daemon.events(after).await?);
            let is_expected = told.len() == expected.iter().filter(|(name, _)| told.contains_key(*name)).count()
                && expected.iter().all(|(name, words)| matches(told.get(*name).map_or(&[], Vec::as_slice), words));
            ensure!(is_expected, "{what}, by {}: told {told:?}, expected {expected:?}", watcher.way);
        }
        Ok(())
    }

    /// As `step` for a change that Backstage knows to be none: waits until all was processed again.
    pub(crate) async fn step_of_nothing(&self, what: &str, drive: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let drive = async || {
            drive().await?;
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(())
        };
        self.step(what, drive, &[]).await
    }

    /// At the end: each log as a whole is well formed.
    pub(crate) async fn check_logs(&self) -> Result<()> {
        for watcher in &self.watchers {
            let events = watcher.daemon.events(Offset::ZERO).await?;
            check_dense(Offset::ZERO, &events)
                .and_then(|()| check_well_formed(&events))
                .with_context(|| format!("by {}", watcher.way))?;
        }
        Ok(())
    }
}

impl Watcher {
    /// The source's row in `/status`.
    pub(crate) async fn source(&self) -> Result<Value> {
        self.daemon.source(SOURCE).await
    }

    /// Confirms the removals that the guard holds back.
    pub(crate) fn confirm(&self) -> Result<()> {
        let config = self.place.path().join("daemon.yaml").display().to_string();
        let output = cli(&["source", "reconcile", SOURCE, "--confirm", "--config", &config])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// Installs the triggers by the daemon's own role.
fn install(place: &Place, config: &str) -> Result<()> {
    std::fs::write(place.config(), config)?;
    let output = cli(&["source", "install", "--config", &place.config().display().to_string()])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What happened by ref. Locations that Backstage names by a hash are all `location:default/generated`.
fn told(events: &[Event]) -> BTreeMap<String, Vec<&'static str>> {
    let mut told: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for event in events {
        let text = event.entity_ref.as_str();
        let name = if text.starts_with("location:default/generated-") { "location:default/generated" } else { text };
        told.entry(name.to_owned()).or_default().push(event.event_type.as_str());
    }
    told
}

/// Whether what happened is what these words allow.
fn matches(told: &[&str], words: &str) -> bool {
    let words: Vec<&str> = words.split_whitespace().collect();
    match (words.split_first(), told.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((word, rest)), told_first) => {
            let rest = rest.join(" ");
            match (word.strip_suffix('*'), told_first) {
                (Some(word), Some((first, others))) if *first == word => {
                    matches(others, &words.join(" ")) || matches(told, &rest)
                }
                (Some(_), _) => matches(told, &rest),
                (None, Some((first, others))) => first == word && matches(others, &rest),
                (None, None) => false,
            }
        }
    }
}

#[test]
fn words_allow_what_they_say() {
    assert!(matches(&["added"], "added updated*") && matches(&["added", "updated", "updated"], "added updated*"));
    assert!(!matches(&["added", "removed"], "added updated*") && !matches(&[], "added") && matches(&[], ""));
    assert!(matches(&["removed", "added"], "removed added") && !matches(&["removed"], "removed added"));
}
