//! `source status`, `/status` and `/metrics` tell how a catalog is captured, how far, what was repaired and what may be missing.

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use serde_json::Value;

use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, catalog_database, cli};

async fn started(capture: &str) -> Result<(Catalog, Place, Daemon)> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    for name in ["a", "b", "c"] {
        catalog.put_one(name, 1).await?;
    }
    let place = Place::new()?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", capture: {capture} }} }} }}\n",
        place.path().display(),
        catalog.bridge_url()
    );
    let daemon = place.start(&config).await?;
    daemon.wait_until("three events", async || Ok(daemon.events(Offset::ZERO).await?.len() == 3)).await?;
    daemon
        .wait_until("the first reconcile ended", async || {
            Ok(daemon.source("backstage").await?["detail"]["lastReconcile"].is_object())
        })
        .await?;
    Ok((catalog, place, daemon))
}

/// What the command prints for a person.
fn told(place: &Place) -> Result<String> {
    let config = place.path().join("daemon.yaml").display().to_string();
    let output = cli(&["source", "status", "--config", &config])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[track_caller]
fn ensure_told(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }
    Ok(())
}

/// The value of a metric of the source, with these further labels.
fn metric(metrics: &str, name: &str, labels: &str) -> Result<f64> {
    let start = format!("catalog_bridge_source_{name}{{source=\"backstage\"{labels}}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    Ok(line.with_context(|| format!("no {start:?} in:\n{metrics}"))?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn by_generations_the_status_names_the_last_generation() -> Result<()> {
    let (_catalog, place, daemon) = started("auto").await?;

    let detail = daemon.source("backstage").await?["detail"].clone();
    ensure!(detail["capture"] == "generations" && detail["why"].as_str().is_some_and(|why| why.starts_with("auto")));
    ensure!(detail["capturedThrough"]["generation"] == 3 && detail["lagChanges"] == 0, "{detail}");
    ensure!(detail["capturedThrough"]["at"].is_string() && detail["nextReconcileAt"].is_string(), "{detail}");
    ensure!(detail["gaps"]["count"] == 0 && detail["lastReconcile"]["compared"] == 3, "{detail}");
    ensure_told(
        &told(&place)?,
        &[
            "source backstage (backstage-db): running",
            "capture generations (auto: the catalog numbers its changes at commit)",
            "generation 3, 0 changes behind; 3 entities, 0 rejected",
            "(first start): 3 compared",
            "no gap noticed",
        ],
    )?;
    let metrics = daemon.metrics().await?;
    ensure!(metric(&metrics, "capture_info", ",capture=\"generations\"")? == 1.0);
    ensure!(metric(&metrics, "lag_changes", "")? == 0.0);
    let (last, next) = ("last_reconcile_timestamp_seconds", "next_reconcile_timestamp_seconds");
    ensure!(metric(&metrics, last, "")? < metric(&metrics, next, "")?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn by_reconcile_the_status_tells_when_the_next_one_is() -> Result<()> {
    let (_catalog, place, daemon) = started("reconcile").await?;

    ensure_told(&told(&place)?, &["capture reconcile (configured)", "3 entities, 0 rejected", "; next 20"])?;
    ensure!(metric(&daemon.metrics().await?, "capture_info", ",capture=\"reconcile\"")? == 1.0);
    Ok(())
}

/// Changes that were made while the catalog gave no numbers are a gap: it is counted, repaired, and still known after a
/// restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_stays_in_the_status_with_its_reason() -> Result<()> {
    let (catalog, place, daemon) = started("generations").await?;
    let mut connection = catalog.connect().await?;
    let trigger = "trigger final_entities_assign_generation_at_commit";
    for statement in [
        format!("alter table final_entities disable {trigger}"),
        "update final_entities set final_entity = replace(final_entity, 'production', 'experimental'), hash = 'x' || hash"
            .to_owned(),
        format!("alter table final_entities enable {trigger}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
    }

    daemon.wait_until("the repair", async || Ok(daemon.events(Offset::ZERO).await?.len() == 6)).await?;
    daemon
        .wait_until("the reconcile ended", async || {
            let detail = daemon.source("backstage").await?["detail"].clone();
            Ok(detail["lastReconcile"]["repaired"] == 3 && detail["reconcile"] == Value::Null)
        })
        .await?;
    let reason = "gaps noticed: ";
    let told_before = told(&place)?;
    ensure_told(&told_before, &[reason, "the trigger that numbers the catalog's changes was off", "3 repaired"])?;
    let metrics = daemon.metrics().await?;
    ensure!(metric(&metrics, "gaps_total", "")? >= 1.0 && metric(&metrics, "reconcile_repairs_total", "")? == 3.0);
    let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();

    daemon.kill()?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\n",
        place.path().display(),
        catalog.bridge_url()
    );
    let daemon = place.start(&config).await?;
    daemon
        .wait_until("the gap is known again", async || Ok(daemon.source("backstage").await?["detail"]["gaps"] == gaps))
        .await
}
