//! The way of capture changes while the daemon runs: nothing is repeated, nothing lost, and it is said in status and log.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};

use crate::support::catalog::Catalog;
use crate::support::triggers::{Installed, install, uninstall};
use crate::support::{Daemon, Place, catalog_database};

/// As a catalog backend before 4.0.3 leaves its tables.
const DOWNGRADE: &str = "drop trigger final_entities_assign_generation_at_commit on final_entities;
    drop table catalog_generation_counter;
    alter table final_entities drop column generation";
/// What the migration of 4.0.3 adds, and what the operator is told to grant.
const UPGRADE: &str = "alter table final_entities add column generation bigint;
    create index final_entities_generation_idx on final_entities (generation) include (entity_ref) where generation is not null;
    create table catalog_generation_counter (id integer primary key, generation bigint not null);
    insert into catalog_generation_counter values (1, 0);
    create constraint trigger final_entities_assign_generation_at_commit after insert or update of final_entity on final_entities
      deferrable initially deferred for each row execute function final_entities_assign_generation_at_commit();
    grant select on catalog_generation_counter to bridge_reader";

/// A catalog that changes at every step, and the daemon that follows.
struct Followed {
    installed: Installed,
    daemon: Daemon,
    version: u64,
}

impl Followed {
    async fn new() -> Result<Self> {
        let catalog = Catalog::create(&catalog_database().await?).await?;
        let source = "reconcile_only_interval: 200ms, removal_interval: 100ms".to_owned();
        let installed = Installed { catalog, place: Place::new()?, source };
        let daemon = installed.start().await?;
        let mut followed = Followed { installed, daemon, version: 0 };
        followed.change().await?;
        Ok(followed)
    }

    /// Changes some entities, adds one and removes one.
    async fn change(&mut self) -> Result<()> {
        for name in ["a", "b", "c"] {
            self.version += 1;
            self.installed.catalog.put_one(name, self.version).await?;
        }
        self.version += 1;
        self.installed.catalog.put_one(&format!("added-{}", self.version), self.version).await?;
        self.installed.catalog.remove_one(&format!("added-{}", self.version - 4)).await
    }

    /// Changes the catalog right after the switch and again when it is noticed.
    async fn expect(&mut self, capture: &str, why: &str) -> Result<()> {
        self.change().await?;
        self.daemon
            .wait_until(&format!("capture by {capture} because {why}"), async || {
                let detail = self.daemon.source("backstage").await?["detail"].clone();
                let told = detail["why"].as_str().unwrap_or_default();
                Ok(detail["capture"] == capture && told.contains(why) && detail["reconcile"].is_null())
            })
            .await?;
        self.change().await?;
        self.daemon
            .wait_until("log = truth", async || {
                let truth = self.installed.catalog.truth().await?;
                Ok(live_state(Truth::new(), &self.daemon.events(Offset::ZERO).await?)? == truth)
            })
            .await?;
        ensure!(self.daemon.log().contains(&format!("to {capture}")), "the switch to {capture} is not in the log");
        Ok(())
    }

    /// Each version came at most once, in the order of commits.
    async fn check(&self) -> Result<()> {
        let events = self.daemon.events(Offset::ZERO).await?;
        check_dense(Offset::ZERO, &events)?;
        check_well_formed(&events)?;
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for event in &events {
            let Some(entity) = &event.entity else { continue };
            let entity: serde_json::Value = serde_json::from_str(entity.as_str())?;
            let version = entity["metadata"]["annotations"]["example.com/version"].as_str().context("a version")?;
            let version: u64 = version.parse()?;
            let before = last.insert(event.entity_ref.name(), version);
            ensure!(
                before.is_none_or(|before| before < version),
                "offset {}: {version} after {before:?}",
                event.offset
            );
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_are_installed_and_removed() -> Result<()> {
    let mut followed = Followed::new().await?;

    install(&followed.installed.catalog).await?;
    followed.expect("triggers", "the bridge's triggers are installed").await?;
    uninstall(&followed.installed.catalog).await?;
    followed.expect("generations", "numbers its changes").await?;
    install(&followed.installed.catalog).await?;
    followed.expect("triggers", "the bridge's triggers are installed").await?;
    let disable = "alter table final_entities disable trigger catalog_bridge_update";
    followed.installed.execute(disable).await?;
    followed.expect("generations", "catalog_bridge_update is missing or disabled").await?;

    followed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn backstage_is_downgraded_and_upgraded() -> Result<()> {
    let mut followed = Followed::new().await?;

    followed.installed.execute(DOWNGRADE).await?;
    followed.expect("reconcile", "gives no generations").await?;
    install(&followed.installed.catalog).await?;
    followed.expect("triggers", "the bridge's triggers are installed").await?;
    uninstall(&followed.installed.catalog).await?;
    followed.expect("reconcile", "gives no generations").await?;
    followed.installed.execute(UPGRADE).await?;
    followed.expect("generations", "numbers its changes").await?;

    followed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_taken_and_given() -> Result<()> {
    let mut followed = Followed::new().await?;

    followed.installed.execute("revoke select on catalog_generation_counter from bridge_reader").await?;
    followed.expect("reconcile", "may not read catalog_generation_counter").await?;
    followed.installed.execute("grant select on catalog_generation_counter to bridge_reader").await?;
    followed.expect("generations", "numbers its changes").await?;

    followed.check().await
}
