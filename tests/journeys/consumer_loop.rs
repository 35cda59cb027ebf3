//! The RFC's consumer: bootstrap from `/entities`, follow `/events`, resume, begin again when the log says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{Daemon, Place, remove, stores, upsert};

/// What a consumer keeps: the entities by ref, and where it stands.
#[derive(Default)]
struct Mirror {
    entities: BTreeMap<String, Value>,
    offset: u64,
}

impl Mirror {
    async fn bootstrap(daemon: &Daemon, filter: &str) -> Result<Self> {
        let mut mirror = Mirror::default();
        let mut cursor = String::new();
        loop {
            let page = daemon.get(&format!("/entities?limit=7{filter}{cursor}")).await?;
            mirror.offset = page["lastEventOffset"].as_u64().context("lastEventOffset")?;
            for entity in page["items"].as_array().context("items")? {
                mirror.entities.insert(name_of(entity)?, entity.clone());
            }
            let Some(next) = page["pageInfo"]["nextCursor"].as_str() else { return Ok(mirror) };
            cursor = format!("&cursor={next}");
        }
    }

    async fn follow(&mut self, daemon: &Daemon, filter: &str, wait: u64) -> Result<()> {
        let page = daemon.get(&format!("/events?offset={}&wait={wait}&limit=13{filter}", self.offset)).await?;
        for event in page["events"].as_array().context("events")? {
            let name =
                event["entityRef"].as_str().context("entityRef")?.rsplit('/').next().unwrap_or_default().to_owned();
            if event["type"] == "removed" {
                ensure!(self.entities.remove(&name).is_some(), "removed what was not there: {event}");
            } else {
                let before = self.entities.insert(name, event["entity"].clone());
                ensure!(
                    before.is_none() == (event["type"] == "added"),
                    "{} of what was {}: {event}",
                    event["type"],
                    if before.is_some() { "there" } else { "not there" }
                );
            }
        }
        self.offset = page["lastEventOffset"].as_u64().context("lastEventOffset")?;
        Ok(())
    }
}

fn name_of(entity: &Value) -> Result<String> {
    Ok(entity["metadata"]["name"].as_str().context("a name")?.to_owned())
}

/// Bootstraps begun at any moment, with and without a filter whose owners change all the time, end at the live state.
#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_follow_and_resume_end_at_the_live_state() -> Result<()> {
    for store in stores().await? {
        let place = Place::new()?;
        let config = format!("log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\n", store.log(&place)?);
        let daemon = place.start(&config).await?;
        let done = AtomicBool::new(false);
        let writing = async {
            for version in 0..120u64 {
                let mut changes: Vec<_> =
                    (0..6).map(|step| upsert(&format!("e{}", (version * 5 + step) % 50), version)).collect();
                changes.push(remove(&format!("e{}", version * 3 % 50)));
                daemon.ingest("push", &changes).await?;
            }
            done.store(true, Ordering::SeqCst);
            anyhow::Ok(())
        };
        let consumers = futures::future::try_join_all(
            ["", "", "&filter=spec.owner=team-1", "&filter=spec.owner=team-1", "&filter=spec.owner=team-2"].map(
                |filter| {
                    let (daemon, done) = (&daemon, &done);
                    async move {
                        let mut mirror = Mirror::bootstrap(daemon, filter).await?;
                        while !done.load(Ordering::SeqCst) {
                            mirror.follow(daemon, filter, 1).await?;
                        }
                        while mirror.offset < daemon.head().await?.get() {
                            mirror.follow(daemon, filter, 0).await?;
                        }
                        anyhow::Ok((filter, mirror))
                    }
                },
            ),
        );
        let (written, mirrors) = tokio::join!(writing, consumers);
        written?;
        daemon.stop().await?;
        let daemon = place.start(&config).await?;
        for (filter, mut mirror) in mirrors? {
            ensure!(mirror.offset > 0, "{}: {filter:?}: the reader followed something", store.name());
            daemon.ingest("push", &[upsert("late", mirror.entities.len() as u64)]).await?;
            while mirror.offset < daemon.head().await?.get() {
                mirror.follow(&daemon, filter, 0).await?;
            }
            let live = Mirror::bootstrap(&daemon, filter).await?;
            ensure!(
                mirror.entities == live.entities,
                "{}: {filter:?}: the followed state is not the live state",
                store.name()
            );
        }
    }
    Ok(())
}
