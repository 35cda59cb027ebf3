//! The whole chain on real parts: a Backstage backend on PostgreSQL changes entities; two replicas of the daemon capture them
//! with SELECT alone, keep them in PostgreSQL, serve them by REST and deliver them in order to Kafka.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{EventType, Offset};
use catalog_bridge_history::{DeliveryRules, Lane, Truth, check_delivery, check_dense, check_well_formed, live_state};
use catalog_bridge_services::{Backstage, BackstageOptions, Postgres, PostgresOptions};
use serde_json::{Value, json};

use crate::support::{Daemon, Place, grants, kafka, postgres_store};

fn entity(kind: &str, name: &str, owner: &str) -> Value {
    let spec = if kind == "Group" {
        json!({ "type": "team", "children": [] })
    } else {
        json!({ "type": "service", "lifecycle": "production", "owner": owner })
    };
    json!({ "apiVersion": "backstage.io/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

/// What Backstage itself serves, by ref.
async fn truth(backstage: &Backstage) -> Result<Truth> {
    let (_, page) = backstage.request(reqwest::Method::GET, "/api/catalog/entities/by-query?limit=10000", None).await?;
    page["items"]
        .as_array()
        .context("items")?
        .iter()
        .map(|entity| {
            let text = |path: &str| entity.pointer(path).and_then(Value::as_str).unwrap_or("default");
            let entity_ref = catalog_bridge_api::EntityRef::from_parts(
                text("/kind"),
                text("/metadata/namespace"),
                text("/metadata/name"),
            )?;
            Ok((entity_ref, entity.clone()))
        })
        .collect()
}

/// Waits until the log holds what Backstage serves; returns the events since `after`.
async fn settle(backstage: &Backstage, daemon: &Daemon, after: Offset) -> Result<Vec<(EventType, String)>> {
    backstage.wait_idle().await?;
    let truth = truth(backstage).await?;
    daemon
        .wait_until("the log holds what Backstage serves", async || {
            Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth)
        })
        .await?;
    let events = daemon.events(after).await?;
    Ok(events.into_iter().map(|event| (event.event_type, event.entity_ref.to_string())).collect())
}

fn count(events: &[(EventType, String)], event_type: EventType, kind: &str) -> usize {
    events.iter().filter(|(found, entity_ref)| *found == event_type && entity_ref.starts_with(kind)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_backstage_commits_arrives_in_kafka_in_order() -> Result<()> {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let backstage = Backstage::start(&postgres, BackstageOptions::default()).await?;
    let bridge_url = grants::grant(backstage.database_url(), backstage.schema(), &[]).await?;
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(4).await?;
    let place = Place::new()?;
    let config = format!(
        "log: {}\nsources: {{ backstage: {{ backstage-db: {{ url: \"{bridge_url}\" }} }} }}\nsinks: {{ platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }} }} }}\n",
        postgres_store().await?.log(&place)?,
        broker.address()
    );
    let replicas = [place.start_named("a", &config).await?, place.start_named("b", &config).await?];
    let reader = &replicas[1];

    let mut added: Vec<Value> = (0..5).map(|number| entity("Component", &format!("c{number}"), "team-a")).collect();
    added.push(entity("Group", "team-a", ""));
    backstage.mutate_full(&added).await?;
    let begun = settle(&backstage, reader, Offset::ZERO).await?;
    ensure!(count(&begun, EventType::Added, "component:") == 5, "five components are added: {begun:?}");
    ensure!(count(&begun, EventType::Added, "group:") == 1, "one group is added: {begun:?}");

    let at = reader.head().await?;
    backstage.mutate_delta(&[entity("Component", "c0", "team-b")], &[]).await?;
    let changed = settle(&backstage, reader, at).await?;
    ensure!(count(&changed, EventType::Updated, "component:") == 1, "one component is updated: {changed:?}");

    let at = reader.head().await?;
    backstage.mutate_delta(&[entity("Component", "c0", "team-b")], &[]).await?;
    let same = settle(&backstage, reader, at).await?;
    ensure!(same.is_empty(), "the same content again is no event: {same:?}");

    let at = reader.head().await?;
    backstage.mutate_delta(&[], &["component:default/c1", "component:default/c2"]).await?;
    let removed = settle(&backstage, reader, at).await?;
    ensure!(count(&removed, EventType::Removed, "component:") == 2, "two components are removed: {removed:?}");

    let head = reader.head().await?;
    reader.wait_for_checkpoint("platform", head.get()).await?;
    let events = reader.events(Offset::ZERO).await?;
    check_dense(Offset::ZERO, &events)?;
    check_well_formed(&events)?;
    let expected: Vec<(Offset, String)> =
        events.iter().map(|event| (event.offset, event.entity_ref.to_string())).collect();
    let rules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 0, sessions_max: 1 };
    check_delivery(&expected, &broker.read_all(&topic).await?, rules)?;

    let mut state = BTreeMap::new();
    for record in broker.read_records(&topic).await? {
        let kind = record.header("ce_type").context("ce_type")?.to_owned();
        ensure!(record.header("ce_subject") == Some(record.key.as_str()), "the subject is the key");
        let body: Value = serde_json::from_slice(record.body.as_deref().context("a body")?)?;
        if kind == "io.backstage.catalog.entity.removed.v1" {
            state.remove(&record.key);
        } else {
            state.insert(record.key, body["entity"].clone());
        }
    }
    let truth: BTreeMap<String, Value> =
        truth(&backstage).await?.into_iter().map(|(entity_ref, entity)| (entity_ref.to_string(), entity)).collect();
    ensure!(state == truth, "folding the topic by key gives what Backstage serves");
    Ok(())
}
