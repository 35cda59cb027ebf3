use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use catalog_bridge_history::{check_dense, check_well_formed};
use tokio::task::JoinSet;

use super::*;

on_both_stores! {
    /// P1, P2.
    many_writers_make_one_dense_log,
    /// P1.
    readers_never_see_a_gap_or_a_late_event,
    /// P4.
    a_snapshot_taken_among_writers_and_the_events_after_it_are_the_live_state,
    /// P9.
    of_two_owners_one_is_fenced,
    a_caller_that_goes_away_leaves_no_half_append,
}

const WRITERS: usize = 16;
const ROUNDS: usize = 8;

/// Each writer is a source of its own; they share no ref.
async fn write(store: Subject, writer: usize) {
    for round in 0..ROUNDS {
        let name = |number: usize| format!("w{writer}-{number}");
        let mut changes: Vec<Change> = (0..4).map(|number| upsert(&name(number), &round.to_string())).collect();
        changes.push(remove(&name(round % 4)));
        let append = Append { source: source(&format!("writer-{writer}")), ..append(changes) };
        store.log.append(append).await.expect("appended");
    }
}

async fn many_writers_make_one_dense_log(store: Subject) {
    let replica = store.replica().await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(if writer % 2 == 0 { store.clone() } else { replica.clone() }, writer));
    }
    writers.join_all().await;

    let events = store.events().await;

    check_dense(Offset::ZERO, &events).expect("dense");
    check_well_formed(&events).expect("well formed");
    let owners: HashSet<&str> =
        events.iter().filter_map(|event| event.entity_ref.name().split_once('-')).map(|(writer, _)| writer).collect();
    assert_eq!(owners.len(), WRITERS);
    assert_eq!(fold(&events).len(), WRITERS * 3);
}

async fn readers_never_see_a_gap_or_a_late_event(store: Subject) {
    let replica = store.replica().await;
    let is_done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..8 {
        let (store, is_done) = (if reader % 2 == 0 { store.clone() } else { replica.clone() }, Arc::clone(&is_done));
        readers.spawn(async move {
            let mut events: Vec<Event> = Vec::new();
            loop {
                let was_done = is_done.load(Ordering::SeqCst);
                let after = Offset::new(events.len() as u64);
                let page = store.log.read(after, limits(50)).await.expect("read");
                assert!(page.state.head.get() >= (events.len() + page.entries.len()) as u64);
                events.extend(page.entries.iter().map(|entry| entry.event.clone()));
                check_dense(Offset::ZERO, &events).expect("dense");
                if was_done && page.entries.is_empty() {
                    return events;
                }
            }
        });
    }
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        writers.spawn(write(if writer % 2 == 0 { store.clone() } else { replica.clone() }, writer));
    }
    writers.join_all().await;
    is_done.store(true, Ordering::SeqCst);

    let seen = readers.join_all().await;

    let final_events = store.events().await;
    assert!(seen.iter().all(|events| *events == final_events));
}

async fn a_snapshot_taken_among_writers_and_the_events_after_it_are_the_live_state(store: Subject) {
    let mut writers = JoinSet::new();
    for writer in 0..6 {
        writers.spawn(write(store.clone(), writer));
    }
    let mut bootstraps = JoinSet::new();
    for reader in 0..6 {
        let store = store.clone();
        bootstraps.spawn(async move {
            let mut watch = store.log.watch();
            let begun = watch.wait_for(|state| state.head.get() > reader * 20).await.expect("writers run").head;
            let mut state = std::collections::BTreeMap::new();
            let mut last: Option<EntityRef> = None;
            loop {
                let page = store.log.state_at(begun, last.as_ref(), limits(2)).await.expect("state");
                last = page.entries.last().map(|entry| entry.event.entity_ref.clone()).or(last);
                let live = |entry: &Arc<crate::store::LogEntry>| entry.event.entity.clone().expect("live");
                state.extend(page.entries.iter().map(|entry| (entry.event.entity_ref.clone(), live(entry))));
                if !page.more {
                    return (begun, state);
                }
            }
        });
    }
    writers.join_all().await;

    let snapshots = bootstraps.join_all().await;

    let events = store.events().await;
    for (begun, mut state) in snapshots {
        for event in events.iter().filter(|event| event.offset > begun) {
            match &event.entity {
                Some(entity) => state.insert(event.entity_ref.clone(), entity.clone()),
                None => state.remove(&event.entity_ref),
            };
        }
        assert_eq!(state, fold(&events), "begun at {begun}");
    }
}

async fn of_two_owners_one_is_fenced(store: Subject) {
    store.lease("catalog", 1).await;
    let replica = store.replica().await;
    let race = |store: Subject, name: &'static str| async move {
        let append = Append { position: position(1, None, &format!("\"{name}\"")), ..append(vec![upsert(name, "1")]) };
        store.log.append(append).await
    };

    let (one, other) = tokio::join!(race(store.clone(), "one"), race(replica, "other"));

    assert_ne!(one.is_ok(), other.is_ok(), "{one:?} {other:?}");
    assert_eq!(store.events().await.len(), 1);
}

async fn a_caller_that_goes_away_leaves_no_half_append(store: Subject) {
    for round in 0..20_u64 {
        let changes = (0..50).map(|number| upsert(&format!("e{number}"), &round.to_string())).collect();
        let wait = std::time::Duration::from_micros(round * 150);
        let _ = tokio::time::timeout(wait, store.log.append(append(changes))).await;
    }

    // One more append waits for whatever is still under way.
    store.append(vec![upsert("last", "1")]).await;
    let events = store.events().await;

    check_dense(Offset::ZERO, &events).expect("dense");
    check_well_formed(&events).expect("well formed");
    assert_eq!(events.iter().filter(|event| event.entity_ref.name() != "last").count() % 50, 0, "whole appends only");
    assert_eq!(store.log.watch().borrow().head, Offset::new(events.len() as u64));
}
