//! P2: each entityRef goes added (updated)* removed (added …)*, and an update that changes nothing is no event.

use anyhow::{Result, ensure};
use catalog_bridge_api::{EventType, Offset};
use catalog_bridge_history::{check_dense, check_well_formed, live_state};
use serde_json::json;

use crate::support::{Place, component, remove, seed, stores, upsert};

/// The log decides the type by what it holds, whatever sources say and repeat.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_and_reordered_statements_are_no_events() -> Result<()> {
    for store in stores().await? {
        let place = Place::new()?;
        let daemon =
            place.start(&format!("log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\n", store.log(&place)?)).await?;

        daemon.ingest("push", &[upsert("a", 1), upsert("a", 1), remove("ghost")]).await?;
        let reordered: serde_json::Value = serde_json::from_str(&reversed_keys(&component("a", 1).to_string()))?;
        let unchanged = daemon.ingest("push", &[json!({ "upsert": reordered })]).await?;
        daemon.ingest("push", &[upsert("a", 2), remove("a"), remove("a"), upsert("a", 2)]).await?;

        ensure!(
            unchanged["appended"] == 0 && unchanged["unchanged"] == 1,
            "{}: key order is no change: {unchanged}",
            store.name()
        );
        let events = daemon.events(Offset::ZERO).await?;
        let types: Vec<EventType> = events.iter().map(|event| event.event_type).collect();
        ensure!(
            types == [EventType::Added, EventType::Updated, EventType::Removed, EventType::Added],
            "{}: {types:?}",
            store.name()
        );
        let changed = events[1].changed.clone().unwrap_or_default();
        ensure!(changed.paths.contains(&"spec.owner".to_owned()), "{}: {changed:?}", store.name());
        check_well_formed(&events)?;
    }
    Ok(())
}

/// Another uid under the same ref is another entity: removed, then added.
#[tokio::test(flavor = "multi_thread")]
async fn another_uid_gives_removed_and_added() -> Result<()> {
    let place = Place::new()?;
    let daemon = place
        .start(&format!("log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\n", place.path().display()))
        .await?;
    let with_uid = |uid: &str| {
        let mut entity = component("a", 1);
        entity["metadata"]["uid"] = json!(uid);
        json!({ "upsert": entity })
    };

    daemon.ingest("push", &[with_uid("11111111-1111-4111-8111-111111111111")]).await?;
    daemon.ingest("push", &[with_uid("22222222-2222-4222-8222-222222222222")]).await?;

    let events = daemon.events(Offset::ZERO).await?;
    let types: Vec<EventType> = events.iter().map(|event| event.event_type).collect();
    ensure!(types == [EventType::Added, EventType::Removed, EventType::Added], "{types:?}");
    check_well_formed(&events)
}

/// Random statements of a few refs, many duplicates among them, leave a well-formed log whose fold is the last statement of each.
#[tokio::test(flavor = "multi_thread")]
async fn random_statements_leave_a_well_formed_log() -> Result<()> {
    use rand::{Rng, SeedableRng};
    let seed = seed();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for store in stores().await? {
        let place = Place::new()?;
        let daemon =
            place.start(&format!("log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\n", store.log(&place)?)).await?;
        let mut truth = catalog_bridge_history::Truth::new();
        for _ in 0..40 {
            let mut changes = Vec::new();
            for _ in 0..random.random_range(1..30) {
                let (name, version) = (format!("e{}", random.random_range(0..12)), random.random_range(0..4));
                let entity_ref = catalog_bridge_api::EntityRef::parse(&format!("component:default/{name}"))?;
                if random.random_bool(0.3) {
                    changes.push(remove(&name));
                    truth.remove(&entity_ref);
                } else {
                    changes.push(upsert(&name, version));
                    truth.insert(entity_ref, component(&name, version));
                }
            }
            daemon.ingest("push", &changes).await?;
        }

        let events = daemon.events(Offset::ZERO).await?;
        check_dense(Offset::ZERO, &events)?;
        check_well_formed(&events)?;
        ensure!(
            live_state(catalog_bridge_history::Truth::new(), &events)? == truth,
            "{}: seed {seed}: the fold is not the truth",
            store.name()
        );
    }
    Ok(())
}

/// The same JSON object with its top-level keys the other way round.
fn reversed_keys(text: &str) -> String {
    let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).expect("an object");
    let members: Vec<String> = value.iter().rev().map(|(key, value)| format!("{}:{value}", json!(key))).collect();
    format!("{{{}}}", members.join(","))
}
