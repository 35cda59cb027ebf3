//! A reconcile goes by pages: it is resumed where it was, shows its progress, and no snapshot of it is older than a page.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{Truth, live_state};
use serde_json::Value;

use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, catalog_database, grants};

const ENTITIES: u64 = 20_000;

async fn progress(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.source("backstage").await?["detail"]["reconcile"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_reconcile_goes_on_where_it_was() -> Result<()> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    catalog.fill(ENTITIES, 200).await?;
    let place = Place::new()?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\n",
        place.path().display(),
        catalog.bridge_url()
    );
    let daemon = place.start(&config).await?;
    daemon
        .wait_until("some pages are compared", async || {
            Ok(progress(&daemon).await?["compared"].as_u64().is_some_and(|compared| compared >= 3_000))
        })
        .await?;
    let begun = progress(&daemon).await?["startedAt"].clone();
    daemon.kill()?;

    let daemon = place.start(&config).await?;
    let mut connection = catalog.connect().await?;
    let mut transactions = BTreeSet::new();
    let source = loop {
        let begun: Vec<String> = sqlx::query_scalar(
            "select xact_start::text from pg_stat_activity where usename = $1 and datname = current_database() and xact_start is not null",
        )
        .bind(grants::ROLE)
        .fetch_all(&mut connection)
        .await?;
        transactions.extend(begun);
        let source = daemon.source("backstage").await?;
        if source["detail"]["lastReconcile"].is_object() {
            break source;
        }
    };

    let last = &source["detail"]["lastReconcile"];
    ensure!(last["startedAt"] == begun, "the one that began at {begun}: {last}");
    ensure!(last["compared"] == ENTITIES, "each page once: {last}");
    ensure!(transactions.len() > 3, "transactions of their own: {transactions:?}");
    let events = daemon.events(Offset::ZERO).await?;
    ensure!(events.len() as u64 == ENTITIES, "{} events", events.len());
    ensure!(live_state(Truth::new(), &events)? == catalog.truth().await?, "log = truth");
    Ok(())
}
