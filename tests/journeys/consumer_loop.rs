//! The RFC's consumer: bootstrap from `/entities`, follow `/events`, resume, begin again when the log says so.

use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::mirror::Mirror;
use crate::support::{Place, remove, stores, upsert};

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
                        let mut mirror =
                            Mirror::bootstrap(daemon, filter, Duration::ZERO).await?.context("a whole walk")?;
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
            let live = Mirror::bootstrap(&daemon, filter, Duration::ZERO).await?.context("a whole walk")?;
            ensure!(
                mirror.entities == live.entities,
                "{}: {filter:?}: the followed state is not the live state",
                store.name()
            );
        }
    }
    Ok(())
}
