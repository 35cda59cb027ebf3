//! A long backlog is worked off in flat memory.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::{Place, component};

/// 200,000 events of 2 KiB wait for one sink that begins at the log's beginning; the daemon's peak memory stays far below them.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_400_megabytes_stays_flat() -> Result<()> {
    let place = Place::new()?;
    let log = format!("log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\n", place.path().display());
    let daemon = place.start(&log).await?;
    let events = 200_000;
    let filler = "f".repeat(1700);
    let entity = |number: usize| -> Value {
        let mut entity = component(&format!("e{}", number % 20_000), number as u64);
        entity["spec"]["filler"] = json!(filler);
        json!({ "upsert": entity })
    };
    for batch in (0..events).collect::<Vec<_>>().chunks(5000) {
        daemon.ingest("push", &batch.iter().map(|number| entity(*number)).collect::<Vec<_>>()).await?;
    }
    let writing = daemon.peak_memory_bytes()?;
    daemon.stop().await?;

    let config = format!(
        "{log}sinks: {{ audit: {{ file: {{ path: \"{}/audit.ndjson\" }}, start: earliest }} }}\n",
        place.path().display()
    );
    let daemon = place.start(&config).await?;
    daemon.wait_for_checkpoint("audit", events as u64).await?;

    let delivering = daemon.peak_memory_bytes()?;
    eprintln!(
        "peak RSS: {} MiB while 200,000 events were ingested, {} MiB while they were delivered",
        writing >> 20,
        delivering >> 20
    );
    ensure!(delivering < 250 << 20, "{} MiB for a backlog of 400 MiB: it is not flat", delivering >> 20);
    Ok(())
}
