//! P9: with several replicas one owns a sink or source at a time; what was frozen wakes and changes nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{DeliveryRules, Lane, Truth, check_delivery, check_dense, check_well_formed, live_state};
use rand::{Rng, SeedableRng};

use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, catalog_database, kafka, postgres_store, rounds, seed, upsert};

/// Two replicas on one PostgreSQL log; the owner of source and sink is stopped past its lease (also in the middle of appends
/// and deliveries), woken, and killed, while the catalog and ingest go on: the other takes over, log = truth, no gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_owner_is_replaced_and_wakes_fenced() -> Result<()> {
    let seed = seed();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let place = Place::new()?;
    let store = postgres_store().await?;
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(4).await?;
    let config = format!(
        "log: {}\nsources:\n  backstage: {{ backstage-db: {{ url: \"{}\" }} }}\n  push: {{ ingest: {{}} }}\nsinks:\n  platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }}, encoding: json }}\n",
        store.log(&place)?,
        catalog.bridge_url(),
        broker.address()
    );
    let mut replicas = [place.start_named("a", &config).await?, place.start_named("b", &config).await?];
    let (done, version) = (AtomicBool::new(false), AtomicU64::new(1));
    let changes = async {
        while !done.load(Ordering::SeqCst) {
            let number = version.fetch_add(1, Ordering::SeqCst);
            catalog.put_one(&format!("c{}", number % 17), number).await?;
            if number.is_multiple_of(11) {
                catalog.remove_one(&format!("c{}", number % 5)).await?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    let faults = async {
        for round in 0..rounds(3, 12) {
            let (owner, other) = owner_and_other(&replicas).await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            replicas[owner].signal("STOP")?;
            // Appends of others are never blocked for longer than the store's time-outs.
            for step in 0..10u64 {
                replicas[other]
                    .ingest("push", &[upsert(&format!("pushed-{step}"), round as u64)])
                    .await
                    .context("ingest beside a frozen owner")?;
            }
            replicas[other]
                .wait_until("the other replica takes the source and the sink over", async || {
                    owns_both(&replicas[other]).await
                })
                .await?;
            replicas[owner].signal("CONT")?;
            tokio::time::sleep(Duration::from_millis(random.random_range(500..1500))).await;
            ensure!(
                !owns(&replicas[owner].source("backstage").await?, &replicas[owner]),
                "what woke claims the source"
            );
            if round % 2 == 1 {
                let name = ["a", "b"][other];
                let fresh = place.spawn(name, &config)?;
                std::mem::replace(&mut replicas[other], fresh).kill()?;
                replicas[other].ready().await?;
            }
        }
        done.store(true, Ordering::SeqCst);
        anyhow::Ok(())
    };
    let (changed, faulted) = tokio::join!(changes, faults);
    changed?;
    faulted.with_context(|| format!("seed {seed}"))?;

    let reader = &replicas[0];
    let truth = catalog.truth().await?;
    reader
        .wait_until("log = truth", async || {
            let state = live_state(Truth::new(), &reader.events(Offset::ZERO).await?)?;
            Ok(state.into_iter().filter(|(entity_ref, _)| !entity_ref.name().starts_with("pushed-")).collect::<Truth>()
                == truth)
        })
        .await?;
    let events = reader.events(Offset::ZERO).await?;
    check_dense(Offset::ZERO, &events)?;
    check_well_formed(&events)?;
    let head = reader.head().await?;
    reader.wait_for_checkpoint("platform", head.get()).await?;
    let expected: Vec<(Offset, String)> =
        events.into_iter().map(|event| (event.offset, event.entity_ref.to_string())).collect();
    let rules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 21_000, sessions_max: 30 };
    check_delivery(&expected, &broker.read_all(&topic).await?, rules).with_context(|| format!("seed {seed}"))
}

/// Which replica owns the source, and the other one.
async fn owner_and_other(replicas: &[Daemon; 2]) -> Result<(usize, usize)> {
    let owner = AtomicU64::new(9);
    replicas[0]
        .wait_until("one replica owns the source", async || {
            for (index, replica) in replicas.iter().enumerate() {
                if owns(&replica.source("backstage").await?, replica) {
                    owner.store(index as u64, Ordering::SeqCst);
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await?;
    let owner = usize::try_from(owner.load(Ordering::SeqCst))?;
    Ok((owner, 1 - owner))
}

/// Whether a row of `/status` names this replica as the owner of the lease (every replica shows the owner's state).
fn owns(row: &serde_json::Value, replica: &Daemon) -> bool {
    row["owner"].as_str().is_some_and(|owner| owner.contains(&format!("/{}/", replica.pid())))
}

async fn owns_both(replica: &Daemon) -> Result<bool> {
    Ok(owns(&replica.source("backstage").await?, replica) && owns(&replica.sink("platform").await?, replica))
}

/// Two replicas: each event is captured and delivered once, and a clean stop hands everything over.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_hands_over_without_repetition() -> Result<()> {
    let place = Place::new()?;
    let store = postgres_store().await?;
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let audit = place.path().join("audit.ndjson");
    let config = format!(
        "log: {}\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\nsinks: {{ audit: {{ file: {{ path: \"{}\" }} }} }}\n",
        store.log(&place)?,
        catalog.bridge_url(),
        audit.display()
    );
    let first = place.start_named("a", &config).await?;
    let second = place.start_named("b", &config).await?;
    catalog.put_one("before", 1).await?;
    second
        .wait_until("the first change is delivered", async || Ok(second.sink("audit").await?["checkpoint"] == 1))
        .await?;

    ensure!(first.stop().await? == 0, "a clean stop exits with 0");
    catalog.put_one("after", 2).await?;

    second
        .wait_until("the second change is delivered", async || Ok(second.sink("audit").await?["checkpoint"] == 2))
        .await?;
    ensure!(crate::support::read_lines(&audit)?.len() == 2, "nothing is repeated in the file");
    Ok(())
}
