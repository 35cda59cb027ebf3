//! P7: a sink that is slow, down or misconfigured affects no other sink, no source and no reader, and says so.

use anyhow::{Context, Result, ensure};

use crate::support::{Place, free_port, read_lines, stores, upsert};

/// One broker is absent, one sink's directory is missing: the third sink and the readers have everything, and status and
/// metrics name the two with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn trouble_of_a_sink_stays_its_own() -> Result<()> {
    for store in stores().await? {
        let place = Place::new()?;
        let audit = place.path().join("audit.ndjson");
        let config = format!(
            "log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n  absent: {{ kafka: {{ brokers: [\"127.0.0.1:{}\"], topic: catalog }} }}\n  misplaced: {{ file: {{ path: /nowhere/at/all/x.ndjson }} }}\n  audit: {{ file: {{ path: \"{}\" }} }}\n",
            store.log(&place)?,
            free_port()?,
            audit.display()
        );
        let daemon = place.start(&config).await?;

        for version in 0..20 {
            daemon
                .ingest("push", &(0..50).map(|number| upsert(&format!("e{number}"), version)).collect::<Vec<_>>())
                .await?;
        }

        let head = daemon.head().await?;
        ensure!(head.get() == 1000, "{}: head {head}", store.name());
        daemon.wait_for_checkpoint("audit", head.get()).await?;
        ensure!(read_lines(&audit)?.len() == 1000, "{}: the healthy sink's file holds every event", store.name());
        daemon
            .wait_until("the absent broker is shown", async || Ok(daemon.sink("absent").await?["state"] == "retrying"))
            .await?;
        daemon
            .wait_until("the missing directory is shown", async || {
                Ok(daemon.sink("misplaced").await?["state"] == "misconfigured")
            })
            .await?;
        let misplaced = daemon.sink("misplaced").await?;
        ensure!(misplaced["reason"].as_str().context("a reason")?.contains("/nowhere/at/all"), "{misplaced}");
        ensure!(daemon.sink("absent").await?["lagEvents"].as_u64() == Some(1000), "{}", daemon.sink("absent").await?);
        let metrics = daemon.metrics().await?;
        let lag = |sink: &str| {
            metrics.lines().any(|line| {
                line.starts_with("catalog_bridge_sink_lag_events{") && line.contains(&format!("sink=\"{sink}\""))
            })
        };
        ensure!(lag("absent") && lag("audit"), "the lag of both sinks is in /metrics:\n{metrics}");
        ensure!(daemon.stop().await? == 0, "a stuck sink does not keep the daemon from stopping");
    }
    Ok(())
}

/// A broker that was absent at start gets everything once it is there; the daemon never exits.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_absent_at_start_is_waited_for() -> Result<()> {
    let place = Place::new()?;
    let directory = place.path().join("later");
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks: {{ audit: {{ file: {{ path: \"{}/audit.ndjson\" }} }} }}\n",
        place.path().display(),
        directory.display()
    );
    let daemon = place.start(&config).await?;
    daemon.ingest("push", &[upsert("a", 1)]).await?;
    daemon
        .wait_until("the missing directory is shown", async || {
            Ok(daemon.sink("audit").await?["state"] == "misconfigured")
        })
        .await?;

    std::fs::create_dir(&directory)?;

    daemon.wait_for_checkpoint("audit", 1).await
}
