//! P1: offsets are 1, 2, 3, … with no gap. Once a reader has seen head H, no event at or below H will ever appear later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};

use crate::support::catalog::{self, Catalog};
use crate::support::{Daemon, Place, catalog_database, remove, stores, upsert};

const INGEST_WRITERS: u64 = 10;
const CATALOG_WRITERS: u64 = 6;
const READERS: usize = 8;

/// Sixteen writers over ingest and the catalog's database, eight readers that page and long-poll, on both stores.
#[tokio::test(flavor = "multi_thread")]
async fn no_reader_misses_or_sees_late_an_event_while_sixteen_write() -> Result<()> {
    for store in stores().await? {
        let place = Place::new()?;
        let catalog = Catalog::create(&catalog_database().await?).await?;
        let config = format!(
            "log: {}\nsources:\n  push: {{ ingest: {{}} }}\n  backstage: {{ backstage-db: {{ url: \"{}\" }} }}\n",
            store.log(&place)?,
            catalog.bridge_url()
        );
        let daemon = place.start(&config).await?;
        let done = AtomicBool::new(false);

        let pushing = futures::future::try_join_all((0..INGEST_WRITERS).map(|writer| write(&daemon, writer)));
        let committing = futures::future::try_join_all((0..CATALOG_WRITERS).map(|writer| commit(&catalog, writer)));
        let readers = futures::future::try_join_all((0..READERS).map(|reader| follow(&daemon, reader, &done)));
        let (written, seen) = tokio::join!(
            async {
                let written = async { tokio::try_join!(pushing, committing).map(drop) }.await;
                let settled = settle(&daemon, &catalog).await;
                done.store(true, Ordering::SeqCst);
                written.and(settled)
            },
            readers
        );

        written?;
        let head = daemon.head().await?;
        let events = daemon.events(Offset::ZERO).await?;
        check_dense(Offset::ZERO, &events)?;
        check_well_formed(&events)?;
        ensure!(events.last().map(|event| event.offset) == Some(head), "{}: the log ends at its head", store.name());
        for (reader, offsets) in seen?.into_iter().enumerate() {
            ensure!(
                offsets == (1..=head.get()).collect::<Vec<_>>(),
                "{}: reader {reader} saw other offsets than 1..={head}",
                store.name()
            );
        }
    }
    Ok(())
}

/// Writes batches over refs that all writers share; every third batch also removes.
async fn write(daemon: &Daemon, writer: u64) -> Result<()> {
    for round in 0..12 {
        let mut changes: Vec<_> = (0..8)
            .map(|step| upsert(&format!("shared-{}", (writer + step * 5 + round) % 40), writer * 1000 + round))
            .collect();
        if round % 3 == 2 {
            changes.push(remove(&format!("shared-{}", (writer * 7 + round) % 40)));
        }
        daemon.ingest("push", &changes).await?;
    }
    Ok(())
}

/// Changes components of its own in the catalog's database, one transaction each, and removes some.
async fn commit(catalog: &Catalog, writer: u64) -> Result<()> {
    let mut connection = catalog.connect().await?;
    for version in 0..40 {
        let name = format!("stitched-{writer}-{}", version % 7);
        catalog::put(&mut connection, &name, || version).await?;
        if version % 9 == 8 {
            catalog::remove(&mut connection, &name).await?;
        }
    }
    Ok(())
}

/// Waits until the log holds what the catalog holds.
async fn settle(daemon: &Daemon, catalog: &Catalog) -> Result<()> {
    let truth = catalog.truth().await?;
    daemon
        .wait_until("the log holds what the catalog holds", async || {
            let mut state = live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)?;
            state.retain(|entity_ref, _| entity_ref.name().starts_with("stitched-"));
            Ok(state == truth)
        })
        .await
}

/// Follows from the beginning until the writers are done and head is reached; returns the offsets in the order seen.
async fn follow(daemon: &Daemon, reader: usize, done: &AtomicBool) -> Result<Vec<u64>> {
    let limit = [1, 7, 100, 1000][reader % 4];
    let (mut at, mut seen, mut head_seen) = (0, Vec::new(), 0);
    loop {
        let finished = done.load(Ordering::SeqCst);
        let page = daemon
            .get(&format!("/events?offset={at}&limit={limit}&wait={}", u8::from(reader.is_multiple_of(2))))
            .await?;
        let head = page["headOffset"].as_u64().context("headOffset")?;
        ensure!(head >= head_seen, "reader {reader}: head went from {head_seen} back to {head}");
        head_seen = head;
        for event in page["events"].as_array().context("events")? {
            let offset = event["offset"].as_u64().context("offset")?;
            ensure!(offset == at + 1, "reader {reader}: offset {offset} follows {at}");
            ensure!(offset <= head, "reader {reader}: offset {offset} above head {head}");
            seen.push(offset);
            at = offset;
        }
        ensure!(page["lastEventOffset"].as_u64() == Some(at), "lastEventOffset {} after {at}", page["lastEventOffset"]);
        if finished && at == daemon.head().await?.get() {
            return Ok(seen);
        }
        if reader % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
