//! An event that NATS or SQS refuses for good: the sink waits for its operator, or passes over it with a record (P8). Kafka's are in
//! `promises/p08`, RabbitMQ's and webhooks' in their troubles.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use sqlx::{Connection, SqliteConnection};

use super::destination::{self, Destination, REFUSED, REFUSED_BYTES};
use crate::support::{Daemon, Place, cli, component, upsert};

/// Twenty entities are made, another one is refused, and the twenty are changed.
const ENTITIES: u64 = 20;
const REFUSED_OFFSET: u64 = 21;
const HEAD: u64 = 41;

const BLOCKING: [&str; 2] = ["subjects-block", "fifo-block"];
const SKIPPING: [&str; 2] = ["subjects-skip", "fifo-skip"];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_blocks_until_the_printed_command_is_given_or_is_skipped() -> Result<()> {
    let (nats, sqs) = (destination::nats, destination::sqs);
    let (subjects, fifo, other_subjects, other_fifo) = tokio::try_join!(nats(), sqs(), nats(), sqs())?;
    let mut destinations = [subjects, fifo, other_subjects, other_fifo];
    let place = Place::new()?;
    let log = place.path().join("log.db");
    let mut config = format!("log: sqlite://{}\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n", log.display());
    for (destination, name) in destinations.iter_mut().zip(BLOCKING.into_iter().chain(SKIPPING)) {
        destination.sink = name;
        let on_refused = if BLOCKING.contains(&name) { "block" } else { "skip" };
        let section = &destination.section;
        config.push_str(&format!("  {name}: {{ {section}, start: earliest, on_refused: {on_refused} }}\n"));
    }
    let daemon = place.start(&config).await?;
    let all = |version: u64| (0..ENTITIES).map(|number| upsert(&format!("e{number}"), version)).collect::<Vec<_>>();
    let mut refused = component(REFUSED, 1);
    refused["spec"]["definition"] = json!("d".repeat(REFUSED_BYTES));

    daemon.ingest("push", &all(1)).await?;
    daemon.ingest("push", &[json!({ "upsert": refused })]).await?;
    daemon.ingest("push", &all(2)).await?;

    for sink in SKIPPING {
        daemon.wait_for_checkpoint(sink, HEAD).await?;
    }
    for sink in BLOCKING {
        follow_the_help(&daemon, sink).await?;
    }

    for destination in &destinations {
        judge(&daemon, destination).await?;
    }
    ensure!(daemon.stop().await? == 0, "it stops in good order");
    let records = read_records(&log).await?;
    for sink in BLOCKING.into_iter().chain(SKIPPING) {
        let by = if SKIPPING.contains(&sink) { "on_refused: skip" } else { "operator" };
        let found: Vec<_> = records.iter().filter(|(of, ..)| of == sink).collect();
        let [(_, offset, entity_ref, recorded_by)] = found[..] else { bail!("{sink}: {records:?}") };
        ensure!(
            offset.unsigned_abs() == REFUSED_OFFSET && entity_ref == "component:default/refused",
            "{sink}: {records:?}"
        );
        ensure!(recorded_by == by, "{sink}: {records:?}");
    }
    Ok(())
}

/// Gives the first command that the blocked sink's status prints, as it is printed.
async fn follow_the_help(daemon: &Daemon, sink: &str) -> Result<()> {
    daemon.wait_for_state(sink, "blocked", "component:default/refused").await?;
    daemon.wait_for_checkpoint(sink, REFUSED_OFFSET - 1).await?;
    let row = daemon.sink(sink).await?;
    ensure!(row["checkpoint"] == REFUSED_OFFSET - 1 && row["offset"] == REFUSED_OFFSET, "{row}");
    let command = row["help"][0].as_str().unwrap_or_default().to_owned();
    ensure!(command == format!("catalog-bridge sinks skip {sink} {REFUSED_OFFSET}"), "{row}");

    let words: Vec<&str> = command.split(' ').skip(1).chain(["--admin", &daemon.admin]).collect();
    let output = cli(&words)?;

    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    daemon.wait_for_checkpoint(sink, HEAD).await?;
    daemon.wait_for_state(sink, "running", "").await
}

/// Everything but what was refused.
async fn judge(daemon: &Daemon, destination: &Destination) -> Result<()> {
    let wanted: Vec<u64> = (1..=HEAD).filter(|offset| *offset != REFUSED_OFFSET).collect();
    let what = format!("{} holds all but offset {REFUSED_OFFSET}", destination.sink);
    daemon.wait_until(&what, async || Ok(destination.times().len() >= wanted.len())).await?;
    let found: Vec<u64> = destination.times().into_keys().collect();
    ensure!(found == wanted, "{}: {found:?}", destination.sink);
    Ok(())
}

/// What was passed over: the sink, the offset, the entity, and who decided it.
async fn read_records(log: &std::path::Path) -> Result<Vec<(String, i64, String, String)>> {
    let mut store = SqliteConnection::connect(&format!("sqlite://{}", log.display())).await?;
    Ok(sqlx::query_as("select sink, event_offset, entity_ref, skipped_by from skipped").fetch_all(&mut store).await?)
}
