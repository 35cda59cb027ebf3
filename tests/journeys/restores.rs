//! Databases restored from an older copy: the log ends at the truth, and offsets never mean two things under one log id.

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};
use catalog_bridge_services::{Postgres, PostgresOptions};

use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, kafka, upsert};

async fn log_equals(daemon: &Daemon, catalog: &Catalog) -> Result<()> {
    let truth = catalog.truth().await?;
    daemon
        .wait_until("log = truth", async || Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth))
        .await?;
    let events = daemon.events(Offset::ZERO).await?;
    check_dense(Offset::ZERO, &events)?;
    check_well_formed(&events)
}

/// The catalog's database is replaced by an older physical copy and driven past the old counter while the bridge is down: what
/// the copy undid and what came after are both in the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_catalog_is_reconciled() -> Result<()> {
    let mut postgres = Postgres::start(PostgresOptions::default()).await?;
    let place = Place::new()?;
    let copy = place.path().join("copy");
    let catalog = Catalog::create(&postgres.create_database("catalog").await?).await?;
    for number in 0..20 {
        catalog.put_one(&format!("old-{number}"), number).await?;
    }
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", removal_guard: \"off\" }} }} }}\n",
        place.path().display(),
        catalog.bridge_url()
    );
    let daemon = place.start(&config).await?;
    log_equals(&daemon, &catalog).await?;
    postgres.stop().await?;
    postgres.copy_data_to(&copy).await?;
    postgres.start_again().await?;
    for number in 0..10 {
        catalog.put_one(&format!("undone-{number}"), 100 + number).await?;
        catalog.put_one(&format!("old-{number}"), 200 + number).await?;
    }
    catalog.remove_one("old-19").await?;
    log_equals(&daemon, &catalog).await?;
    ensure!(daemon.stop().await? == 0, "a clean stop");

    postgres.stop().await?;
    postgres.replace_data_by(&copy).await?;
    postgres.start_again().await?;
    for number in 0..30 {
        catalog.put_one(&format!("since-{}", number % 6), 300 + number).await?;
    }
    let daemon = place.start(&config).await?;

    log_equals(&daemon, &catalog).await
}

/// The bridge's own PostgreSQL store is replaced by an older copy: the log gets a new id before an offset is used twice, a
/// client that comes with the old id gets 409, and the sink's topic ends at the truth.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_gets_a_new_log_id() -> Result<()> {
    let mut postgres = Postgres::start(PostgresOptions::default()).await?;
    let catalog = Catalog::create(&crate::support::catalog_database().await?).await?;
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(1).await?;
    let place = Place::new()?;
    let copy = place.path().join("copy");
    let config = format!(
        "log: {}\nsources:\n  backstage: {{ backstage-db: {{ url: \"{}\" }} }}\n  push: {{ ingest: {{}} }}\nsinks: {{ platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }} }} }}\n",
        postgres.create_database("log").await?,
        catalog.bridge_url(),
        broker.address()
    );
    catalog.put_one("a", 1).await?;
    let daemon = place.start(&config).await?;
    log_equals(&daemon, &catalog).await?;
    postgres.stop().await?;
    postgres.copy_data_to(&copy).await?;
    postgres.start_again().await?;
    for number in 0..10 {
        catalog.put_one("a", 10 + number).await?;
        catalog.put_one(&format!("b{number}"), 1).await?;
    }
    log_equals(&daemon, &catalog).await?;
    let before = daemon.get("/events/head").await?;
    let (old_id, old_head) =
        (before["logId"].as_str().context("logId")?.to_owned(), before["headOffset"].as_u64().context("head")?);
    daemon.wait_for_checkpoint("platform", old_head).await?;

    postgres.stop().await?;
    postgres.replace_data_by(&copy).await?;
    postgres.start_again().await?;

    daemon
        .wait_until("the log has a new id", async || {
            let (status, head) = daemon.try_get("/events/head").await?;
            Ok(status == 200 && head["logId"] != old_id.as_str())
        })
        .await?;
    let (status, problem) = daemon.try_get(&format!("/events?offset={old_head}&logId={old_id}&wait=0")).await?;
    ensure!(status == 409, "the old id is refused: {status} {problem}");
    catalog.put_one("after", 1).await?;
    log_equals(&daemon, &catalog).await?;

    // By the topic: an offset that was shown may still be one of the old log.
    let is_live = async || {
        let mut last = std::collections::BTreeMap::new();
        for record in broker.read_records(&topic).await? {
            last.insert(record.key.clone(), record.header("ce_type").unwrap_or_default().ends_with("removed.v1"));
        }
        let live: Vec<String> = last.into_iter().filter(|(_, is_removed)| !is_removed).map(|(key, _)| key).collect();
        let truth: Vec<String> = catalog.truth().await?.into_keys().map(|entity_ref| entity_ref.to_string()).collect();
        Ok(live == truth)
    };
    daemon.wait_until("the topic ends at the truth", is_live).await
}

/// The store is away at start and in mid-run: the daemon starts degraded, says so, and goes on when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_waited_for() -> Result<()> {
    let mut postgres = Postgres::start(PostgresOptions::default()).await?;
    let place = Place::new()?;
    let config = format!("log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\n", postgres.create_database("log").await?);
    postgres.stop().await?;
    let mut daemon = place.spawn("daemon", &config)?;

    daemon
        .wait_until("it is alive and not ready", async || {
            let status = async |path: &str| {
                Ok::<_, reqwest::Error>(
                    daemon.client().get(format!("{}{path}", daemon.http)).send().await?.status().as_u16(),
                )
            };
            Ok(status("/healthz").await? == 200 && status("/readyz").await? == 503)
        })
        .await?;
    postgres.start_again().await?;
    daemon.ready().await?;
    daemon.ingest("push", &[upsert("a", 1)]).await?;
    postgres.kill9().await?;
    let (status, _) = daemon.try_get("/events?wait=0&offset=0").await?;
    ensure!(status == 200 || status == 503, "a reader gets the cached event or 503, not {status}");
    ensure!(
        daemon.ingest("push", &[upsert("b", 1)]).await.is_err(),
        "an append that cannot be stored is not acknowledged"
    );
    postgres.start_again().await?;

    daemon
        .wait_until("appends work again", async || Ok(daemon.ingest("push", &[upsert("b", 1)]).await.is_ok()))
        .await?;
    ensure!(daemon.events(Offset::ZERO).await?.len() == 2, "both events are there once");
    ensure!(daemon.is_alive(), "the daemon lives");
    Ok(())
}

/// The catalog's database is away for a while: status and metrics say so, and nothing is missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_is_away_is_waited_for() -> Result<()> {
    let mut postgres = Postgres::start(PostgresOptions::default()).await?;
    let catalog = Catalog::create(&postgres.create_database("catalog").await?).await?;
    let place = Place::new()?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\n",
        place.path().display(),
        catalog.bridge_url()
    );
    let daemon = place.start(&config).await?;
    catalog.put_one("a", 1).await?;
    log_equals(&daemon, &catalog).await?;

    postgres.kill9().await?;
    daemon.wait_until("status says so", async || Ok(daemon.source("backstage").await?["state"] == "retrying")).await?;
    let status = daemon.source("backstage").await?;
    ensure!(!status.to_string().contains("reader-secret"), "no secret in {status}");
    ensure!(
        daemon
            .metrics()
            .await?
            .lines()
            .any(|line| line.starts_with("catalog_bridge_source_errors_total{") && !line.ends_with(" 0")),
        "metrics count the errors"
    );
    postgres.start_again().await?;
    catalog.put_one("b", 2).await?;
    catalog.remove_one("a").await?;

    log_equals(&daemon, &catalog).await?;
    ensure!(!daemon.log().contains("reader-secret"), "no secret in the log");
    Ok(())
}
