//! P4: the pages of one `/entities` walk are the state at `lastEventOffset`; that state plus the events after it is the live
//! state; with a filter too, while writers run and retention deletes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::mirror::{Followed, Mirror};
use crate::support::{Daemon, Place, remove, stores, upsert};

/// Mirrors begun at any moment and followed for any time equal the live state; owners change all the time, and retention
/// passes several times, so that slow walks and slow readers are told to begin again (410) rather than wrong things.
#[tokio::test(flavor = "multi_thread")]
async fn mirrors_equal_the_live_state_while_writers_run_and_retention_deletes() -> Result<()> {
    for store in stores().await? {
        let place = Place::new()?;
        let config = format!(
            "log: {{ url: \"{}\", retention: {{ events: 300 }} }}\nsources: {{ push: {{ ingest: {{}} }} }}\n",
            store.log(&place)?
        );
        let daemon = place.start(&config).await?;
        let (done, version, expired) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let writing = async {
            let mut passes = 0;
            let mut oldest = 0;
            while passes < 2 {
                let number = version.fetch_add(1, Ordering::SeqCst);
                let mut changes: Vec<_> =
                    (0..6).map(|step| upsert(&format!("e{}", (number * 5 + step) % 60), number)).collect();
                changes.push(remove(&format!("e{}", number * 3 % 60)));
                daemon.ingest("push", &changes).await?;
                let now = daemon.get("/events/head").await?["oldestOffset"].as_u64().unwrap_or(0);
                passes += u64::from(now > oldest);
                oldest = oldest.max(now);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            done.store(true, Ordering::SeqCst);
            anyhow::Ok(())
        };
        let filters =
            ["", "&filter=spec.owner=team-1", "&filter=spec.owner=team-1,kind=component&filter=metadata.name=e7"];
        let readers = futures::future::try_join_all(
            filters.iter().flat_map(|filter| [0, 400].map(|pause| read(&daemon, filter, pause, &done, &expired))),
        );
        let (written, read) = tokio::join!(writing, readers);
        written?;
        read?;
        ensure!(
            daemon.get("/events/head").await?["oldestOffset"].as_u64() > Some(0),
            "{}: retention has deleted",
            store.name()
        );
        eprintln!("{}: {} readers were told to begin again", store.name(), expired.load(Ordering::SeqCst));
    }
    Ok(())
}

/// Mirrors again and again; compares with the live state at the end.
async fn read(daemon: &Daemon, filter: &str, pause: u64, done: &AtomicBool, expired: &AtomicU64) -> Result<()> {
    loop {
        let Some(mut mirror) = Mirror::bootstrap(daemon, filter, Duration::from_millis(pause / 4)).await? else {
            expired.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let mut followed = Followed::On;
        while followed == Followed::On && !done.load(Ordering::SeqCst) {
            followed = mirror.follow(daemon, filter, 1).await?;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        while followed == Followed::On && mirror.offset < daemon.head().await?.get() {
            followed = mirror.follow(daemon, filter, 0).await?;
        }
        if followed == Followed::Expired {
            expired.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let live = Mirror::bootstrap(daemon, filter, Duration::ZERO).await?;
        ensure!(
            live.is_some_and(|live| live.entities == mirror.entities),
            "{filter:?}: the followed state is not the live state"
        );
        return Ok(());
    }
}
