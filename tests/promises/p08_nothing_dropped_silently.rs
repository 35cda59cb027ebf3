//! P8: an event that a destination refuses for good blocks the sink or is skipped with a record; oversize goes as a reference.

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use serde_json::{Value, json};

use crate::support::{Daemon, Place, cli, component, kafka, read_lines, upsert};

/// A component of about so many bytes.
fn large(name: &str, bytes: usize) -> Value {
    let mut entity = component(name, 1);
    entity["spec"]["definition"] = json!("d".repeat(bytes));
    json!({ "upsert": entity })
}

/// 5 MB: whole by REST and in a file, a reference in Kafka that leads to the event.
#[tokio::test(flavor = "multi_thread")]
async fn five_megabytes_go_as_a_reference_to_kafka_and_whole_elsewhere() -> Result<()> {
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(1).await?;
    let place = Place::new()?;
    let audit = place.path().join("audit.ndjson");
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n  audit: {{ file: {{ path: \"{}\" }}, encoding: json }}\n  platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }} }}\n",
        place.path().display(),
        audit.display(),
        broker.address()
    );
    let daemon = place.start(&config).await?;

    daemon.ingest("push", &[large("huge", 5_000_000)]).await?;

    daemon
        .wait_until("both sinks have it", async || {
            Ok(daemon.sink("audit").await?["checkpoint"] == 1 && daemon.sink("platform").await?["checkpoint"] == 1)
        })
        .await?;
    let events = daemon.events(Offset::ZERO).await?;
    ensure!(events[0].entity.as_ref().context("an entity")?.len() > 5_000_000, "REST serves it whole");
    let definition = read_lines(&audit)?[0]["entity"]["spec"]["definition"].as_str().map(str::len);
    ensure!(definition == Some(5_000_000), "the file holds it whole: {definition:?}");
    let records = broker.read_records(&topic).await?;
    let reference =
        records[0].header("ce_dataref").with_context(|| format!("a reference in {:?}", records[0].headers))?;
    ensure!(reference.starts_with("/api/catalog/events/1?"), "{reference}");
    ensure!(records[0].body.as_ref().is_none_or(|body| body.len() < 10_000), "the reference itself is small");
    let event = daemon.get(reference.trim_start_matches("/api/catalog")).await?;
    ensure!(event["entityRef"] == "component:default/huge", "the reference leads to the event");
    Ok(())
}

async fn start_with_refusal(place: &Place, on_refused: &str) -> Result<(Daemon, kafka::Broker, String)> {
    let broker = kafka::shared().await?;
    let topic = broker.create_topic_with(1, &[("max.message.bytes", "4000")]).await?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n  platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }}, on_refused: {on_refused} }}\n",
        place.path().display(),
        broker.address()
    );
    let daemon = place.start(&config).await?;
    daemon.ingest("push", &[upsert("first", 1), large("refused", 20_000), upsert("last", 1)]).await?;
    Ok((daemon, broker, topic))
}

/// `block`: the sink stops before it, says which event and why, and prints the command that leads on.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_blocks_until_the_operator_skips_it() -> Result<()> {
    let place = Place::new()?;
    let (daemon, broker, topic) = start_with_refusal(&place, "block").await?;

    daemon
        .wait_until("the sink is blocked, with everything before it delivered", async || {
            let sink = daemon.sink("platform").await?;
            Ok(sink["state"] == "blocked" && sink["checkpoint"] == 1)
        })
        .await?;
    let blocked = daemon.sink("platform").await?;
    ensure!(blocked["offset"] == 2 && blocked["entityRef"] == "component:default/refused", "{blocked}");
    ensure!(blocked["help"].to_string().contains("sinks skip platform 2"), "{blocked}");
    let skipped = cli(&["sinks", "skip", "platform", "2", "--admin", &daemon.admin])?;
    ensure!(skipped.status.success(), "{}", String::from_utf8_lossy(&skipped.stderr));

    daemon.wait_until("the sink goes on", async || Ok(daemon.sink("platform").await?["checkpoint"] == 3)).await?;
    let keys: Vec<String> = broker.read_records(&topic).await?.into_iter().map(|record| record.key).collect();
    ensure!(
        keys.iter().all(|key| key != "component:default/refused")
            && keys.contains(&"component:default/last".to_owned()),
        "{keys:?}"
    );
    Ok(())
}

/// `skip`: passed over with a record that status and metrics count.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_is_skipped_with_a_record() -> Result<()> {
    let place = Place::new()?;
    let (daemon, broker, topic) = start_with_refusal(&place, "skip").await?;

    daemon.wait_until("the sink passes it", async || Ok(daemon.sink("platform").await?["checkpoint"] == 3)).await?;

    let metrics = daemon.metrics().await?;
    let counted = metrics.lines().any(|line| {
        line.starts_with("catalog_bridge_sink_skipped_events_total{")
            && line.contains("sink=\"platform\"")
            && line.ends_with(" 1")
    });
    ensure!(counted, "{metrics}");
    let keys: Vec<String> = broker.read_records(&topic).await?.into_iter().map(|record| record.key).collect();
    ensure!(
        keys.contains(&"component:default/first".to_owned()) && keys.contains(&"component:default/last".to_owned()),
        "{keys:?}"
    );
    Ok(())
}
