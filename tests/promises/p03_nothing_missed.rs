//! P3: everything the catalog committed reaches the log, per entity in commit order; nothing that did not commit does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{Event, EventType, Offset};
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{Acquire, PgConnection};

use crate::support::catalog::{self, Catalog};
use crate::support::{Place, catalog_database, rounds, seed, stores};

/// What the writers committed: the judge.
#[derive(Default)]
struct Committed {
    versions: Mutex<BTreeSet<u64>>,
    removals: Mutex<BTreeMap<String, usize>>,
    counter: AtomicU64,
}

enum Step {
    Put(u64),
    Remove(String),
}

/// Random concurrent transactions (late commits, rollbacks, savepoints, many entities, delete and re-create in one, cascades),
/// the daemon killed at random moments: log = truth.
#[tokio::test(flavor = "multi_thread")]
async fn log_equals_truth_under_concurrent_transactions_and_kills() -> Result<()> {
    for (store, capture) in stores().await?.into_iter().zip(["generations", "reconcile"]) {
        run(&store, capture).await.with_context(|| format!("{} by {capture}", store.name()))?;
    }
    Ok(())
}

async fn run(store: &crate::support::Store, capture: &str) -> Result<()> {
    let seed = seed();
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let place = Place::new()?;
    let config = format!(
        "log: {}\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", capture: {capture} }} }} }}\n",
        store.log(&place)?,
        catalog.bridge_url()
    );
    let (committed, done) = (Committed::default(), AtomicBool::new(false));
    let writers = futures::future::try_join_all((0..6).map(|writer| write(&catalog, &committed, &done, seed + writer)));
    let daemons = async {
        let mut random = StdRng::seed_from_u64(seed);
        let mut daemon = place.start(&config).await?;
        for _ in 0..rounds(3, 20) {
            tokio::time::sleep(Duration::from_millis(random.random_range(300..2500))).await;
            daemon.kill()?;
            daemon = place.start(&config).await?;
        }
        done.store(true, Ordering::SeqCst);
        anyhow::Ok(daemon)
    };
    let (written, daemon) = tokio::join!(writers, daemons);
    written?;
    let daemon = daemon?;

    let truth = catalog.truth().await?;
    daemon
        .wait_until("log = truth", async || Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth))
        .await?;
    let events = daemon.events(Offset::ZERO).await?;
    check_dense(Offset::ZERO, &events)?;
    check_well_formed(&events)?;
    check_against(&committed, &events)
}

/// No event for what did not commit, versions in commit order, no removal that never was.
fn check_against(committed: &Committed, events: &[Event]) -> Result<()> {
    let versions = committed.versions.lock().expect("no writer panicked");
    let removals = committed.removals.lock().expect("no writer panicked");
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut removed: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events {
        let name = event.entity_ref.name();
        if event.event_type == EventType::Removed {
            *removed.entry(name).or_default() += 1;
            continue;
        }
        let entity: serde_json::Value = serde_json::from_str(event.entity.as_ref().context("an entity")?.as_str())?;
        let version: u64 =
            entity["metadata"]["annotations"]["example.com/version"].as_str().context("a version")?.parse()?;
        ensure!(
            versions.contains(&version),
            "offset {}: version {version} of {name} was never committed",
            event.offset
        );
        let before = last.insert(name, version);
        ensure!(
            before.is_none_or(|before| before < version),
            "offset {}: version {version} of {name} after {before:?}",
            event.offset
        );
    }
    for (name, count) in removed {
        ensure!(
            count <= removals.get(name).copied().unwrap_or(0),
            "{name}: {count} removals in the log, {:?} in the catalog",
            removals.get(name)
        );
    }
    Ok(())
}

async fn write(catalog: &Catalog, committed: &Committed, done: &AtomicBool, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut connection = catalog.connect().await?;
    while !done.load(Ordering::SeqCst) {
        let Ok(steps) = transaction(&mut connection, committed, &mut random).await else {
            continue; // a deadlock between two writers: that transaction did not commit
        };
        for step in steps {
            match step {
                Step::Put(version) => drop(committed.versions.lock().expect("no writer panicked").insert(version)),
                Step::Remove(name) => {
                    *committed.removals.lock().expect("no writer panicked").entry(name).or_default() += 1;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
    }
    Ok(())
}

/// One random transaction; returns what it committed.
async fn transaction(connection: &mut PgConnection, committed: &Committed, random: &mut StdRng) -> Result<Vec<Step>> {
    let mut transaction = connection.begin().await?;
    let mut steps = Vec::new();
    for _ in 0..random.random_range(1..5) {
        let name = ["plain", "with-hyphen", "with.dot", "with_underscore"][random.random_range(0..4)].to_owned()
            + &random.random_range(0..8).to_string();
        match random.random_range(0..10) {
            0..5 => steps.push(put(&mut transaction, committed, &name).await?),
            5 | 6 => {
                catalog::remove(&mut transaction, &name).await?;
                steps.push(Step::Remove(name));
            }
            7 => {
                catalog::remove(&mut transaction, &name).await?;
                steps.push(Step::Remove(name.clone()));
                steps.push(put(&mut transaction, committed, &name).await?);
            }
            _ => {
                let mut savepoint = transaction.begin().await?;
                let step = put(&mut savepoint, committed, &name).await?;
                if random.random_bool(0.5) {
                    savepoint.commit().await?;
                    steps.push(step);
                } else {
                    savepoint.rollback().await?;
                }
            }
        }
    }
    if random.random_bool(0.2) {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..600))).await;
    }
    if random.random_bool(0.15) {
        transaction.rollback().await?;
        return Ok(Vec::new());
    }
    // Told before the commit: the log may show it before our own COMMIT has returned.
    for step in &steps {
        if let Step::Put(version) = step {
            committed.versions.lock().expect("no writer panicked").insert(*version);
        }
    }
    transaction.commit().await?;
    Ok(steps)
}

async fn put(connection: &mut PgConnection, committed: &Committed, name: &str) -> Result<Step> {
    let version = catalog::put(connection, name, || committed.counter.fetch_add(1, Ordering::SeqCst)).await?;
    Ok(Step::Put(version))
}
