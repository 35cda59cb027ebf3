//! Random concurrent transactions on a catalog while the daemon is killed, and the judge of the log that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{Event, EventType, Offset};
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{AssertSqlSafe, Executor, PgConnection, raw_sql};

use super::catalog::{self, Catalog};
use super::{Place, Store, rounds, seed};

const WRITERS: u64 = 6;

/// How a catalog is driven and captured.
pub struct History<'a> {
    pub catalog: &'a Catalog,
    pub store: &'a Store,
    /// Keys of the source beside its URL, such as `capture: reconcile`.
    pub source: &'a str,
    /// Some transactions are prepared first; the server must allow it (`max_prepared_transactions`).
    pub is_two_phase: bool,
    /// The log has to hold each committed version, not only the last ones.
    pub has_every_version: bool,
}

impl History<'_> {
    /// Writes at random (late commits, rollbacks, savepoints, many entities, delete and re-create in one, cascades), kills the
    /// daemon at random moments, and checks that the log becomes the truth, with no event for what did not commit.
    pub async fn check(&self) -> Result<()> {
        let seed = seed();
        let place = Place::new()?;
        let config = format!(
            "log: {}\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", {} }} }} }}\n",
            self.store.log(&place)?,
            self.catalog.bridge_url(),
            self.source
        );
        let first = place.start(&config).await?;
        if self.has_every_version {
            // Before its first look nothing follows the catalog yet.
            first
                .wait_until("the source is followed", async || {
                    Ok(first.source("backstage").await?["detail"]["lastReconcile"].is_object())
                })
                .await?;
        }
        let (committed, done) = (Committed::default(), AtomicBool::new(false));
        let writers =
            futures::future::try_join_all((0..WRITERS).map(|writer| self.write(&committed, &done, seed + writer)));
        let daemons = async {
            let mut random = StdRng::seed_from_u64(seed);
            let mut daemon = first;
            for _ in 0..rounds(3, 20) {
                tokio::time::sleep(Duration::from_millis(random.random_range(300..2500))).await;
                daemon.kill()?;
                daemon = place.start(&config).await?;
            }
            anyhow::Ok(daemon)
        };
        let daemons = async {
            let daemon = daemons.await;
            done.store(true, Ordering::SeqCst);
            daemon
        };
        let (written, daemon) = tokio::join!(writers, daemons);
        written?;
        let daemon = daemon?;

        let truth = self.catalog.truth().await?;
        daemon
            .wait_until("log = truth", async || {
                Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth)
            })
            .await?;
        let events = daemon.events(Offset::ZERO).await?;
        check_dense(Offset::ZERO, &events)?;
        check_well_formed(&events)?;
        committed.check(&events, self.has_every_version)
    }

    async fn write(&self, committed: &Committed, done: &AtomicBool, seed: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut connection = self.catalog.connect().await?;
        run(&mut connection, "set deadlock_timeout = '50ms'").await?;
        let mut number = 0;
        while !done.load(Ordering::SeqCst) {
            number += 1;
            let prepared =
                (self.is_two_phase && random.random_bool(0.3)).then(|| format!("bridge-test-{seed}-{number}"));
            if transaction(&mut connection, committed, &mut random, prepared.as_deref()).await.is_err() {
                // A deadlock between two writers: that transaction did not commit.
                run(&mut connection, "rollback").await?;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
        }
        Ok(())
    }
}

/// What the writers committed: the judge.
#[derive(Default)]
struct Committed {
    /// Noted before the commit: the log may show them before our own COMMIT has returned.
    versions: Mutex<BTreeSet<u64>>,
    /// Those that their transaction left as they are.
    final_versions: Mutex<BTreeSet<u64>>,
    removals: Mutex<BTreeMap<String, usize>>,
    counter: AtomicU64,
}

enum Step {
    Put(String, u64),
    Remove(String),
}

impl Committed {
    fn note_versions(&self, steps: &[Step]) {
        let mut versions = self.versions.lock().expect("no writer panicked");
        versions.extend(steps.iter().filter_map(|step| match step {
            Step::Put(_, version) => Some(*version),
            Step::Remove(_) => None,
        }));
        let mut removals = self.removals.lock().expect("no writer panicked");
        for step in steps {
            if let Step::Remove(name) = step {
                *removals.entry(name.clone()).or_default() += 1;
            }
        }
    }

    fn note_committed(&self, steps: &[Step]) {
        let mut last: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(name, version) => last.insert(name, Some(*version)),
                Step::Remove(name) => last.insert(name, None),
            };
        }
        self.final_versions.lock().expect("no writer panicked").extend(last.into_values().flatten());
    }

    /// No event for what did not commit, versions in commit order, no removal that never was.
    fn check(&self, events: &[Event], has_every_version: bool) -> Result<()> {
        let versions = self.versions.lock().expect("no writer panicked");
        let removals = self.removals.lock().expect("no writer panicked");
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        let mut removed: BTreeMap<&str, usize> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for event in events {
            let name = event.entity_ref.name();
            if event.event_type == EventType::Removed {
                *removed.entry(name).or_default() += 1;
                continue;
            }
            let entity: serde_json::Value = serde_json::from_str(event.entity.as_ref().context("an entity")?.as_str())?;
            let version: u64 =
                entity["metadata"]["annotations"]["example.com/version"].as_str().context("a version")?.parse()?;
            let place = format!("offset {}: version {version} of {name}", event.offset);
            ensure!(versions.contains(&version), "{place} was never committed");
            let before = last.insert(name, version);
            ensure!(before.is_none_or(|before| before < version), "{place} comes after {before:?}");
            seen.insert(version);
        }
        for (name, count) in removed {
            let of_catalog = removals.get(name).copied().unwrap_or(0);
            ensure!(count <= of_catalog, "{name}: {count} removals in the log, {of_catalog} in the catalog");
        }
        let final_versions = self.final_versions.lock().expect("no writer panicked");
        let missing: Vec<_> = final_versions.difference(&seen).collect();
        eprintln!("{} events; {} of {} versions are not in the log", events.len(), missing.len(), final_versions.len());
        ensure!(!has_every_version || missing.is_empty(), "committed versions are not in the log: {missing:?}");
        Ok(())
    }
}

/// One random transaction; an error leaves it open.
async fn transaction(
    connection: &mut PgConnection,
    committed: &Committed,
    random: &mut StdRng,
    prepared: Option<&str>,
) -> Result<()> {
    run(connection, "begin").await?;
    let mut steps = Vec::new();
    for _ in 0..random.random_range(1..5) {
        let name = ["plain", "with-hyphen", "with.dot", "with_underscore"][random.random_range(0..4)].to_owned()
            + &random.random_range(0..8).to_string();
        match random.random_range(0..10) {
            0..5 => steps.push(put(connection, committed, &name).await?),
            5 | 6 => {
                catalog::remove(connection, &name).await?;
                steps.push(Step::Remove(name));
            }
            7 => {
                catalog::remove(connection, &name).await?;
                steps.push(Step::Remove(name.clone()));
                steps.push(put(connection, committed, &name).await?);
            }
            _ => {
                run(connection, "savepoint inner").await?;
                let step = put(connection, committed, &name).await?;
                if random.random_bool(0.5) {
                    run(connection, "release savepoint inner").await?;
                    steps.push(step);
                } else {
                    run(connection, "rollback to savepoint inner").await?;
                }
            }
        }
    }
    if let Some(name) = prepared {
        run(connection, &format!("prepare transaction '{name}'")).await?;
    }
    let end = |word: &str| match prepared {
        Some(name) => format!("{word} prepared '{name}'"),
        None => word.to_owned(),
    };
    if random.random_bool(0.2) {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..600))).await;
    }
    if random.random_bool(0.15) {
        return run(connection, &end("rollback")).await;
    }
    committed.note_versions(&steps);
    run(connection, &end("commit")).await?;
    committed.note_committed(&steps);
    Ok(())
}

async fn put(connection: &mut PgConnection, committed: &Committed, name: &str) -> Result<Step> {
    let version = catalog::put(connection, name, || committed.counter.fetch_add(1, Ordering::SeqCst)).await?;
    Ok(Step::Put(name.to_owned(), version))
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<()> {
    connection.execute(raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
    Ok(())
}
