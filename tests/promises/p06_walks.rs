//! P4 and P6 of sinks that begin by a walk over the live state: killed in its middle, and after retention passed them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::{Daemon, Place, component, read_lines, remove, rounds, seed, stores, upsert};

/// The entities that a reader of the file ends with, and how often each event is in it.
fn fold(lines: &[Value]) -> Result<(BTreeMap<String, Value>, BTreeMap<u64, usize>)> {
    let (mut state, mut times) = (BTreeMap::new(), BTreeMap::new());
    for line in lines {
        *times.entry(line["offset"].as_u64().context("offset")?).or_default() += 1;
        let entity_ref = line["entityRef"].as_str().context("entityRef")?.to_owned();
        if line["type"] == "removed" {
            state.remove(&entity_ref);
        } else {
            state.insert(entity_ref, line["entity"].clone());
        }
    }
    Ok((state, times))
}

/// What REST serves now, by ref.
async fn live(daemon: &Daemon) -> Result<BTreeMap<String, Value>> {
    let mut state = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = daemon.get(&format!("/entities?limit=500{cursor}")).await?;
        for entity in page["items"].as_array().context("items")? {
            let name = entity["metadata"]["name"].as_str().context("a name")?;
            state.insert(format!("component:default/{name}"), entity.clone());
        }
        let Some(next) = page["pageInfo"]["nextCursor"].as_str() else { return Ok(state) };
        cursor = format!("&cursor={next}");
    }
}

/// The daemon is killed in the middle of a walk, several times, while entities change: the walk goes on where it was, every
/// event is in the file once, and the file ends with the live state.
#[tokio::test(flavor = "multi_thread")]
async fn a_walk_that_is_killed_goes_on_where_it_was() -> Result<()> {
    let seed = seed();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for store in stores().await? {
        let place = Place::new()?;
        let audit = place.path().join("audit.ndjson");
        let log = format!("log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\n", store.log(&place)?);
        let daemon = place.start(&log).await?;
        let filler = "f".repeat(8_000);
        for from in (0..6_000u64).step_by(1_000) {
            let changes: Vec<Value> = (from..from + 1_000)
                .map(|number| {
                    let mut entity = component(&format!("e{number}"), number);
                    entity["spec"]["filler"] = json!(filler);
                    json!({ "upsert": entity })
                })
                .collect();
            daemon.ingest("push", &changes).await?;
        }
        daemon.stop().await?;

        let config =
            format!("{log}sinks: {{ audit: {{ file: {{ path: \"{}\" }}, encoding: json }} }}\n", audit.display());
        let mut cut = 0;
        for round in 0..rounds(5, 20) as u64 {
            let daemon = place.start(&config).await?;
            daemon
                .ingest("push", &[upsert(&format!("e{round}"), 7_000 + round), remove(&format!("e{}", 5_999 - round))])
                .await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            let reached = daemon.sink("audit").await?["checkpoint"].as_u64().unwrap_or(0);
            cut += u32::from(reached < 6_000);
            daemon.kill()?;
        }
        let daemon = place.start(&config).await?;
        let head = daemon.head().await?;
        daemon.wait_for_checkpoint("audit", head.get()).await?;

        let (state, times) = fold(&read_lines(&audit)?)?;
        ensure!(
            times.values().all(|times| *times == 1),
            "{}: seed {seed}: an event is in the file twice",
            store.name()
        );
        ensure!(
            state == live(&daemon).await?,
            "{}: seed {seed}: the file does not end with the live state",
            store.name()
        );
        eprintln!("{}: {cut} kills cut the walk", store.name());
    }
    Ok(())
}

/// Retention passes a sink whose destination is away: it is expired, begins again by a walk (`on_expired: snapshot`), and ends
/// with the live state: what was removed meanwhile is told too, so no ghost stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_sink_ends_with_the_live_state_and_no_ghosts() -> Result<()> {
    let place = Place::new()?;
    let (here, away) = (place.path().join("here"), place.path().join("away"));
    std::fs::create_dir(&here)?;
    let config = format!(
        "log: {{ url: \"sqlite://{}/log.db\", retention: {{ events: 50 }} }}\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks: {{ audit: {{ file: {{ path: \"{}/audit.ndjson\" }}, encoding: json, on_expired: snapshot }} }}\n",
        place.path().display(),
        here.display()
    );
    let daemon = place.start(&config).await?;
    daemon.ingest("push", &(0..60).map(|number| upsert(&format!("e{number}"), 1)).collect::<Vec<_>>()).await?;
    daemon
        .wait_until("the first events are delivered", async || Ok(daemon.sink("audit").await?["checkpoint"] == 60))
        .await?;
    daemon.stop().await?;
    std::fs::rename(&here, &away)?;

    let daemon = place.start(&config).await?;
    for version in 2..8 {
        daemon
            .ingest("push", &(0..50).map(|number| upsert(&format!("e{number}"), version)).collect::<Vec<_>>())
            .await?;
    }
    daemon.ingest("push", &(50..60).map(|number| remove(&format!("e{number}"))).collect::<Vec<_>>()).await?;
    daemon
        .wait_until("retention passes the sink", async || {
            Ok(daemon.get("/events/head").await?["oldestOffset"].as_u64() > Some(60))
        })
        .await?;
    std::fs::rename(&away, &here)?;
    daemon.ingest("push", &[upsert("late", 1)]).await?;

    let file = here.join("audit.ndjson");
    let live = live(&daemon).await?;
    daemon
        .wait_until("the file ends with the live state", async || Ok(fold(&read_lines(&file)?)?.0 == live))
        .await
        .with_context(|| format!("{} live entities", live.len()))?;
    ensure!(live.len() == 51, "{}", live.len());
    Ok(())
}
