//! Removals, which have no number: found exactly, held back when there are too many, never invented.

use std::time::Duration;

use catalog_bridge_api::{Cause, EntityRef, EventType, JsonText, SourceName};
use catalog_bridge_services::Collation;
use sqlx::Connection;

use super::super::{CaptureChoice, RemovalGuard, Settings};
use super::catalog::{Catalog, body, delete, entity_ref, start, start_as, wait_for_truth};
use crate::source::testing::{Log, check_well_formed};
use crate::store::{Append, Change, OnOwned, Removal, Upsert};
use crate::telemetry::ConsumerState;

async fn filled(stem: &str, count: usize) -> (Catalog, Log) {
    let catalog = Catalog::new(stem, Collation::English).await;
    let mut connection = catalog.connect().await;
    let mut transaction = connection.begin().await.expect("begun");
    for number in 0..count {
        let (name, id) = (format!("c-{number}"), format!("id-{number}"));
        super::catalog::write(&mut transaction, &name, &id, &body(&name, &id, "0")).await.expect("written");
    }
    transaction.commit().await.expect("committed");
    (catalog, Log::sqlite().await)
}

fn quick(catalog: &Catalog) -> Settings {
    Settings { removal_interval: Duration::from_millis(50), ..catalog.settings() }
}

/// Most of 300 entities vanish: they are held, shown by origin, and go when confirmed; adds flow on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mass_removal_waits_for_a_persons_word() {
    let (catalog, log) = filled("guard_confirm", 300).await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;

    catalog
        .run("delete from refresh_state where entity_ref like 'component:default/c-1%' or entity_ref like '%c-2%'")
        .await;
    let gone = 300 - catalog.truth().await.len() as u64;
    catalog.write("new", "id-new", &body("new", "id-new", "1")).await;
    let status = bridge.wait_for_state("held", |state| matches!(state, ConsumerState::RemovalsHeld { .. })).await;

    assert_eq!(status.state, ConsumerState::RemovalsHeld { count: gone });
    assert_eq!(status.help, ["catalog-bridge source reconcile catalog --confirm"]);
    let origin = &status.detail["heldRemovals"]["byOrigin"]["url:https://git/c"];
    assert_eq!(origin["count"], gone, "{}", status.detail);
    assert!(!origin["refs"].as_array().expect("refs").is_empty());
    while !log.events().await.iter().any(|event| event.entity_ref.as_str() == entity_ref("new")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(log.events().await.iter().all(|event| event.event_type != EventType::Removed));

    // A restart in between changes nothing.
    let owner = bridge.owner.clone();
    bridge.kill().await;
    let slow = Settings { pause_between_looks: Duration::from_millis(500), ..quick(&catalog) };
    let bridge = start_as(&owner, slow, &log);
    let is_owned = |state: &ConsumerState| matches!(state, ConsumerState::Running | ConsumerState::RemovalsHeld { .. });
    let first = bridge.wait_for_state("owned", is_owned).await;
    assert_eq!(first.state, ConsumerState::RemovalsHeld { count: gone }, "before it looked by itself");
    bridge.wait_for_state("held again", |state| *state == ConsumerState::RemovalsHeld { count: gone }).await;
    assert_eq!(bridge.handle.confirm_removals("catalog"), Ok(gone));
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    bridge.stop().await;
    check_well_formed(&log.events().await);
}

/// A person's word is for what was held then; what vanishes until it is carried out is judged by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_is_only_for_what_was_held() {
    let (catalog, log) = filled("guard_scope", 60).await;
    let guard = Some(RemovalGuard { share: 0.1, count: 5 });
    let bridge = start(Settings { removal_guard: guard, ..quick(&catalog) }, &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    catalog.run("delete from refresh_state where substr(entity_id, 4)::int < 30").await;
    bridge.wait_for_state("held", |state| *state == ConsumerState::RemovalsHeld { count: 30 }).await;

    let mut connection = catalog.connect().await;
    let mut transaction = connection.begin().await.expect("begun");
    super::catalog::run(
        &mut transaction,
        "lock table final_entities in access exclusive mode;
         delete from refresh_state where substr(entity_id, 4)::int < 50",
    )
    .await;
    assert_eq!(bridge.handle.confirm_removals("catalog"), Ok(30));
    // The source stands at the lock, with a snapshot in which the others are still there.
    tokio::time::sleep(Duration::from_millis(500)).await;
    transaction.commit().await.expect("committed");

    bridge.wait_for_state("the others held", |state| *state == ConsumerState::RemovalsHeld { count: 20 }).await;
    let removed = log.events().await.iter().filter(|event| event.event_type == EventType::Removed).count();
    assert_eq!(removed, 30);
    assert_eq!(bridge.handle.confirm_removals("catalog"), Ok(20));
    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}

/// The other way out: the entities return. Those that do not stay held, also when few are left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mass_removal_is_forgotten_as_its_entities_return() {
    let (catalog, log) = filled("guard_return", 300).await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    let before = log.events().await.len();

    catalog.run("update final_entities set final_entity = null where false; create table aside as select * from final_entities").await;
    catalog.run("delete from final_entities").await;
    bridge.wait_for_state("held", |state| *state == ConsumerState::RemovalsHeld { count: 300 }).await;
    catalog
        .run(
            "insert into final_entities (entity_id, entity_ref, hash, final_entity, last_updated_at)
             select entity_id, entity_ref, hash, final_entity, last_updated_at from aside where entity_id <> 'id-7'",
        )
        .await;
    bridge.wait_for_state("one left", |state| *state == ConsumerState::RemovalsHeld { count: 1 }).await;

    assert_eq!(log.events().await.len(), before, "nothing happened to any entity");
    assert_eq!(bridge.handle.confirm_removals("catalog"), Ok(1));
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    assert_eq!(log.events().await.len(), before + 1);
    // And an ordinary removal is ordinary again.
    delete(&mut catalog.connect().await, "c-9").await.expect("deleted");
    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_guard_everything_may_go_in_one_transaction() {
    let (catalog, log) = filled("guard_off", 1_500).await;
    let bridge = start(Settings { removal_guard: None, ..quick(&catalog) }, &log);
    wait_for_truth(&bridge, &catalog).await;

    catalog.run("delete from refresh_state").await;

    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
    let events = log.events().await;
    assert_eq!(events.len(), 3_000);
    check_well_formed(&events);
}

/// A row whose body is NULL is no entity, though it is counted by the catalog's index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_a_body_is_no_entity() {
    let (catalog, log) = filled("bodiless", 3).await;
    catalog.run("update final_entities set final_entity = null where entity_id = 'id-0'").await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;

    catalog.run("update final_entities set final_entity = null where entity_id = 'id-1'").await;
    wait_for_truth(&bridge, &catalog).await;
    catalog.write("c-1", "id-1", &body("c-1", "id-1", "1")).await;
    catalog.run("delete from refresh_state where entity_id = 'id-0'").await;
    wait_for_truth(&bridge, &catalog).await;
    delete(&mut catalog.connect().await, "c-2").await.expect("deleted");
    wait_for_truth(&bridge, &catalog).await;

    let detail = bridge.status().expect("a status").detail;
    bridge.stop().await;
    assert_eq!(detail["lastReconcile"]["reason"], "first start", "nothing had to be repaired: {detail}");
    check_well_formed(&log.events().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_lost_its_body_is_no_entity_by_reconcile_either() {
    let (catalog, log) = filled("bodiless_reconcile", 3).await;
    let settings = Settings {
        capture: CaptureChoice::Reconcile,
        reconcile_only_interval: Duration::from_millis(50),
        ..catalog.settings()
    };
    let bridge = start(settings, &log);
    wait_for_truth(&bridge, &catalog).await;

    catalog.run("update final_entities set final_entity = null where entity_id = 'id-1'").await;

    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}

/// The guard holds also what vanishes by losing its body, page by page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mass_loss_of_bodies_waits_for_a_persons_word() {
    let (catalog, log) = filled("guard_bodies", 300).await;
    let settings = Settings { page_rows: 40, ..quick(&catalog) };
    let bridge = start(settings, &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;

    catalog.run("update final_entities set final_entity = null where substr(entity_id, 4)::int < 290").await;
    let status = bridge.wait_for_state("held", |state| matches!(state, ConsumerState::RemovalsHeld { .. })).await;

    let ConsumerState::RemovalsHeld { count } = status.state else { panic!("{status:?}") };
    let removed = log.events().await.iter().filter(|event| event.event_type == EventType::Removed).count() as u64;
    assert!(count + removed == 290 && removed <= 100, "{count} held, {removed} removed");
    // A held one that is written again without a body stays held.
    catalog.run("update final_entities set hash = 'other' where entity_id = 'id-289'").await;
    catalog.write("new", "id-new", &body("new", "id-new", "1")).await;
    while !log.events().await.iter().any(|event| event.entity_ref.as_str() == entity_ref("new")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bridge.handle.confirm_removals("catalog"), Ok(count));
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    bridge.stop().await;
    check_well_formed(&log.events().await);
}

/// What the log cannot take is shown, stops nothing, and is read again when it changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_entities_stop_nothing_and_come_back_when_they_are_good() {
    let (catalog, log) = filled("rejected", 3).await;
    let deep = format!(r#"{{"kind":"Component","spec":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let large =
        format!(r#"{{"kind":"Component","metadata":{{"name":"large","x":"{}"}}}}"#, "x".repeat(17 * 1024 * 1024));
    catalog.write("deep", "id-deep", &deep).await;
    catalog.write("large", "id-large", &large).await;
    catalog.write("broken", "id-broken", "{").await;
    let bridge = start(Settings { removal_guard: None, ..quick(&catalog) }, &log);
    bridge.wait_until_running().await;
    catalog.write("after", "id-after", &body("after", "id-after", "1")).await;
    while log.events().await.len() < 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rejected = log.store.rejected(&crate::source::testing::name(), None, 10).await.expect("rejected");
    let reasons: Vec<_> = rejected.iter().map(|rejected| rejected.reason.as_str()).collect();
    assert!(
        reasons[0].contains("not an entity") && reasons[1].contains("deeper") && reasons[2].contains("bytes"),
        "{reasons:?}"
    );

    catalog.write("deep", "id-deep", &body("deep", "id-deep", "1")).await;
    catalog.write("broken", "id-broken", &body("broken", "id-broken", "1")).await;
    delete(&mut catalog.connect().await, "large").await.expect("deleted");

    wait_for_truth(&bridge, &catalog).await;
    while log.rejected_count().await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bridge.stop().await;
}

/// A ref that another source owns is refused and remembered; when the owner lets go, it is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_ref_is_taken_up_when_its_owner_lets_go() {
    let (catalog, log) = filled("owned", 3).await;
    let other = SourceName::parse("orders").expect("a name");
    let theirs = EntityRef::parse(&entity_ref("c-1")).expect("a ref");
    let append = |change| Append {
        source: other.clone(),
        changes: vec![change],
        position: None,
        idempotency: None,
        rejected: Vec::new(),
        on_owned: OnOwned::RefuseAll,
    };
    let upsert = Upsert {
        entity_ref: theirs.clone(),
        uid: None,
        entity: JsonText::from_trusted("{}"),
        source_version: None,
        source_position: None,
        occurred_at: None,
        cause: Cause::Ingest,
    };
    log.store.append(append(Change::Upsert(upsert))).await.expect("appended");
    let bridge = start(quick(&catalog), &log);
    bridge.wait_until_running().await;
    assert_eq!(log.rejected_count().await, 1);
    assert_eq!(log.store.held_count(&crate::source::testing::name()).await.expect("counted"), 2);

    let removal = Removal { entity_ref: theirs, occurred_at: None, cause: Cause::Ingest };
    log.store.append(append(Change::Remove(removal))).await.expect("appended");

    wait_for_truth(&bridge, &catalog).await;
    assert_eq!(log.rejected_count().await, 0);
    bridge.stop().await;
    check_well_formed(&log.events().await);
}

/// Counts alone would take one vanished and one unseen entity for equal; the sums of the hashes do not.
#[tokio::test]
async fn the_server_hashes_refs_as_we_do() {
    let catalog = Catalog::new("hashes", Collation::English).await;
    let refs: Vec<String> = (0..200).map(|length| "aB-._/:ä".chars().cycle().take(length).collect()).collect();

    let theirs: Vec<i64> = sqlx::query_scalar(
        "select hashtextextended(ref collate \"C\", 0) from unnest($1::text[]) with ordinality as refs (ref, number) order by number",
    )
    .bind(&refs)
    .fetch_all(&mut catalog.connect().await)
    .await
    .expect("hashed");

    let ours: Vec<i64> = refs.iter().map(|text| super::super::ref_hash::ref_hash(text)).collect();
    assert_eq!(ours, theirs);
}

#[test]
fn the_guard_is_on_by_default() {
    let settings = Settings::new(super::super::Connect::url(catalog_bridge_api::Secret::new("postgres://h/d")));
    assert_eq!(settings.removal_guard, Some(RemovalGuard { share: 0.5, count: 100 }));
}
