//! P3: whatever transactions a catalog commits, at once and in any order, the log becomes the truth, with no event for what
//! did not commit and no false removal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use catalog_bridge_api::{Event, EventType};
use catalog_bridge_services::Collation;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sqlx::{Connection, PgConnection};

use super::super::CaptureChoice;
use super::catalog::{Catalog, body, delete, start, start_as, wait_for_truth, write};
use crate::source::testing::{Log, check_well_formed};

/// Sorted quite differently by bytes and by English collation.
const NAMES: [&str; 14] =
    ["a", "a-b", "a.b", "a_b", "ab", "a-b-c", "a.b-c", "a_bc", "abc", "b", "b-1", "b.1", "b_1", "b1"];

/// What really committed.
#[derive(Default)]
struct Committed {
    /// Marks of bodies.
    marks: BTreeSet<String>,
    /// Ids whose deletion committed.
    deleted: BTreeSet<String>,
}

/// What one transaction did, to be noted if it commits.
#[derive(Default, Clone)]
struct Deeds {
    marks: Vec<String>,
    deleted: Vec<String>,
}

async fn drive(catalog: Arc<Catalog>, seed: u64, transactions: usize, committed: Arc<Mutex<Committed>>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut connection = catalog.connect().await;
    super::catalog::run(&mut connection, "set deadlock_timeout = '20ms'").await;
    for number in 0..transactions {
        let mut transaction = connection.begin().await.expect("begun");
        // A deadlock with another worker or a unique violation ends the transaction: it is rolled back as any other.
        let done = act(&mut transaction, &mut random, &format!("{seed}-{number}")).await;
        if random.random_bool(0.3) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        }
        let Ok(deeds) = done else {
            let _ = transaction.rollback().await;
            continue;
        };
        if random.random_bool(0.2) {
            transaction.rollback().await.expect("rolled back");
            continue;
        }
        // Noted before the commit: an event may be seen before this task runs again.
        {
            let mut committed = committed.lock().expect("not poisoned");
            committed.marks.extend(deeds.marks.iter().cloned());
            committed.deleted.extend(deeds.deleted.iter().cloned());
        }
        if transaction.commit().await.is_err() {
            let mut committed = committed.lock().expect("not poisoned");
            for mark in &deeds.marks {
                committed.marks.remove(mark);
            }
        }
    }
}

async fn act(connection: &mut PgConnection, random: &mut StdRng, mark: &str) -> sqlx::Result<Deeds> {
    let mut deeds = Deeds::default();
    for step in 0..random.random_range(1..5) {
        let mark = format!("{mark}-{step}");
        if random.random_bool(0.2) {
            let mut savepoint = connection.begin().await?;
            let inner = one(&mut savepoint, random, &mark).await?;
            if random.random_bool(0.5) {
                savepoint.commit().await?;
                deeds.marks.extend(inner.marks);
                deeds.deleted.extend(inner.deleted);
            } else {
                savepoint.rollback().await?;
            }
        } else {
            let inner = one(connection, random, &mark).await?;
            deeds.marks.extend(inner.marks);
            deeds.deleted.extend(inner.deleted);
        }
    }
    Ok(deeds)
}

async fn one(connection: &mut PgConnection, random: &mut StdRng, mark: &str) -> sqlx::Result<Deeds> {
    let name = *NAMES.choose(random).expect("names");
    let present: Option<String> =
        sqlx::query_scalar("select entity_id::text from refresh_state where entity_ref = $1 for update")
            .bind(super::catalog::entity_ref(name))
            .fetch_optional(&mut *connection)
            .await?;
    let mut deeds = Deeds::default();
    let is_recreated = random.random_bool(0.15);
    if let Some(id) = present.clone().filter(|_| is_recreated || random.random_bool(0.25)) {
        delete(connection, name).await?;
        deeds.deleted.push(id);
        if !is_recreated {
            return Ok(deeds);
        }
    }
    let id = present.filter(|_| deeds.deleted.is_empty()).unwrap_or_else(|| format!("id-{mark}"));
    write(connection, name, &id, &body(name, &id, mark)).await?;
    deeds.marks.push(mark.to_owned());
    Ok(deeds)
}

fn judge(events: &[Event], committed: &Committed) {
    check_well_formed(events);
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    let mut removed: BTreeSet<String> = BTreeSet::new();
    for event in events {
        let entity_ref = event.entity_ref.as_str().to_owned();
        if event.event_type == EventType::Removed {
            let id = held.remove(&entity_ref).expect("well formed");
            assert!(
                committed.deleted.contains(&id),
                "{entity_ref} ({id}) was never deleted, removed at {}",
                event.offset
            );
            removed.insert(id);
            continue;
        }
        let entity: serde_json::Value =
            serde_json::from_str(event.entity.as_ref().expect("a body").as_str()).expect("JSON");
        let mark = entity["spec"]["mark"].as_str().expect("a mark");
        assert!(committed.marks.contains(mark), "{mark} of {entity_ref} never committed, seen at {}", event.offset);
        let id = entity["metadata"]["uid"].as_str().expect("an id").to_owned();
        // Every creation has an id of its own, so one that was removed before it was deleted comes back.
        assert!(!removed.contains(&id), "{entity_ref} ({id}) was removed falsely, it is back at {}", event.offset);
        held.insert(entity_ref, id);
    }
    println!("{} events of {} bodies, {} deletions", events.len(), committed.marks.len(), committed.deleted.len());
}

/// Drives a catalog by several workers, the bridge being killed meanwhile, and judges the log.
async fn check(stem: &str, collation: Collation, capture: CaptureChoice, log: Log, kills: usize) {
    let seed: u64 = rand::rng().random_range(0..1_000_000);
    println!("seed {seed}");
    let catalog = Arc::new(Catalog::new(stem, collation).await);
    if capture == CaptureChoice::Triggers {
        catalog.install().await;
    }
    let committed = Arc::new(Mutex::new(Committed::default()));
    let mut settings = catalog.settings();
    settings.capture = capture;
    settings.removal_guard = None;
    settings.page_rows = 3;
    settings.pause_between_looks = Duration::from_millis(20);
    settings.removal_interval = Duration::from_millis(50);
    settings.reconcile_only_interval = Duration::from_millis(50);
    let workers: Vec<_> = (0..6)
        .map(|worker| tokio::spawn(drive(Arc::clone(&catalog), seed + worker, 120, Arc::clone(&committed))))
        .collect();

    let mut bridge = start(settings.clone(), &log);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let owner = bridge.owner.clone();
        bridge.kill().await;
        bridge = start_as(&owner, settings.clone(), &log);
    }
    for worker in workers {
        worker.await.expect("a worker");
    }
    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;

    judge(&log.events().await, &committed.lock().expect("not poisoned"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_generations_the_log_becomes_the_truth() {
    check("history_c", Collation::C, CaptureChoice::Auto, Log::sqlite().await, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_generations_in_english_order_the_log_becomes_the_truth() {
    check("history_english", Collation::English, CaptureChoice::Generations, Log::postgres().await, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_triggers_the_log_becomes_the_truth() {
    check("history_triggers", Collation::C, CaptureChoice::Triggers, Log::sqlite().await, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_reconcile_in_english_order_the_log_becomes_the_truth() {
    check("history_reconcile", Collation::English, CaptureChoice::Reconcile, Log::sqlite().await, 2).await;
}

/// What a reconcile reads must not come before what was committed before it.
#[tokio::test]
async fn a_reconcile_leaves_newer_rows_to_their_pages() {
    let catalog = Catalog::new("newer", Collation::C).await;
    for name in ["a", "b", "c"] {
        catalog.write(name, name, &body(name, name, "1")).await;
    }
    let mut reader = super::super::catalog::Catalog::connect(&catalog.settings()).await.expect("connected");
    reader.use_way(super::super::position::Way::Generations);
    let all: Vec<String> = ["a", "b", "c"].map(super::catalog::entity_ref).to_vec();

    for (read_to, counter, expected) in [(3, 3, 3), (2, 3, 2), (0, 3, 0), (0, 1, 2)] {
        catalog.run(&format!("update catalog_generation_counter set generation = {counter}")).await;
        let keys = reader.keys(None, read_to, 10).await.expect("keys");
        let (rows, left) = reader.by_ref(&all, read_to, 1 << 20).await.expect("rows");
        assert_eq!((keys.len(), rows.len(), left.len()), (expected, expected, 0), "{read_to} of {counter}");
    }
}
