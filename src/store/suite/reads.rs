use std::collections::BTreeMap;

use catalog_bridge_api::EventType;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::store::{LogEntry, StatePage, StoreError};

on_both_stores! {
    an_empty_log_reads_empty,
    events_come_with_the_body_before_them,
    pages_are_bounded_in_bytes,
    /// P4.
    the_state_at_any_offset_is_the_fold_of_the_events,
    /// P4.
    a_walk_tells_each_live_entity_once,
    a_walk_after_an_earlier_delivery_tells_removals,
    below_oldest_everything_is_expired,
    one_event_its_entity_and_its_history,
    held_refs_are_paged_in_byte_order,
    many_refs_are_paged_without_loss,
}

async fn an_empty_log_reads_empty(store: Subject) {
    let page = store.log.read(Offset::ZERO, limits(10)).await.expect("read");
    let state = store.log.state_at(Offset::ZERO, None, limits(10)).await.expect("state");
    let walk = store.log.walk(Offset::ZERO, Offset::ZERO, None, limits(10)).await.expect("walk");

    assert!(page.entries.is_empty() && state.entries.is_empty() && walk.entries.is_empty());
    assert!(!state.more && !walk.more);
    assert_eq!(page.state, store.log.state().await.expect("state"));
    assert_eq!(page.state, store.log.watch().borrow().clone());
    assert!(store.log.event(Offset::new(1)).await.expect("read").is_none());
    assert!(store.log.read(Offset::new(99), limits(10)).await.expect("read").entries.is_empty());
}

async fn events_come_with_the_body_before_them(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "2")]).await;
    store.append(vec![upsert("a", "3"), upsert("a", "4"), remove("b"), upsert("b", "5")]).await;

    let page = store.log.read(Offset::new(2), limits(100)).await.expect("read");

    let before: Vec<Option<&str>> =
        page.entries.iter().map(|entry| entry.previous_entity.as_ref().map(JsonText::as_str)).collect();
    assert_eq!(before, [Some("1"), Some("3"), Some("2"), None]);
    assert_eq!(page.state.head, Offset::new(6));
}

async fn pages_are_bounded_in_bytes(store: Subject) {
    let body = |value: u32| format!("\"{value}{}\"", "x".repeat(10_000));
    store.append((0..10).map(|number| upsert(&format!("e{number}"), &body(number))).collect()).await;
    let read = async |after, bytes_max| {
        let limits = ReadLimits { events_max: 100, bytes_max };
        let entries = store.log.read(Offset::new(after), limits).await.expect("read").entries;
        entries.iter().map(|entry| entry.event.offset.get()).collect::<Vec<u64>>()
    };

    assert_eq!(read(0, 35_000).await, [1, 2, 3]);
    assert_eq!(read(3, 0).await, [4]);
    assert_eq!(read(0, 1_000_000).await.len(), 10);
    let limits = ReadLimits { events_max: 100, bytes_max: 35_000 };
    let state = store.log.state_at(Offset::new(10), None, limits).await.expect("state");
    assert_eq!((state.entries.len(), state.more), (3, true));
    let walk = store.log.walk(Offset::new(10), Offset::ZERO, None, limits).await.expect("walk");
    assert_eq!((walk.entries.len(), walk.more), (3, true));
}

/// A few hundred random changes of a dozen refs; the seed is fixed, the claim holds for any.
async fn write_random(store: &Subject) -> Vec<Event> {
    let mut random = rand::rngs::StdRng::seed_from_u64(4);
    let names = ["a", "a-b", "a.b", "a_b", "ab", "b", "B2", "c", "d", "e", "zz", "é"];
    for _ in 0..40 {
        let change = |random: &mut rand::rngs::StdRng| {
            let name = names.choose(random).expect("names");
            match random.random_range(0..4) {
                0 => remove(name),
                _ => upsert(name, &format!(r#"{{"v":{}}}"#, random.random_range(0..5))),
            }
        };
        let count = random.random_range(1..10);
        let changes = (0..count).map(|_| change(&mut random)).collect();
        store.append(changes).await;
    }
    store.events().await
}

async fn all_of_state(store: &Subject, at: Offset) -> BTreeMap<EntityRef, JsonText> {
    let mut state = BTreeMap::new();
    let mut last: Option<EntityRef> = None;
    loop {
        let page: StatePage = store.log.state_at(at, last.as_ref(), limits(3)).await.expect("state");
        for entry in &page.entries {
            assert!(last.as_ref().is_none_or(|last| *last < entry.event.entity_ref), "ordered by ref");
            last = Some(entry.event.entity_ref.clone());
            state.insert(entry.event.entity_ref.clone(), entry.event.entity.clone().expect("live"));
        }
        if !page.more {
            return state;
        }
    }
}

async fn all_of_walk(store: &Subject, at: Offset, removals_above: Option<Offset>) -> Vec<LogEntry> {
    let mut walked: Vec<LogEntry> = Vec::new();
    loop {
        let after = walked.last().map_or(Offset::ZERO, |entry| entry.event.offset);
        let page = store.log.walk(at, after, removals_above, limits(3)).await.expect("walk");
        for entry in &page.entries {
            assert!(walked.last().is_none_or(|last| last.event.offset < entry.event.offset), "ascending");
            walked.push(LogEntry::clone(entry));
        }
        if !page.more {
            return walked;
        }
    }
}

async fn the_state_at_any_offset_is_the_fold_of_the_events(store: Subject) {
    let events = write_random(&store).await;

    for at in (0..=events.len()).step_by(7).chain([events.len()]) {
        let expected = fold(&events[..at]);
        assert_eq!(all_of_state(&store, Offset::new(at as u64)).await, expected, "at {at}");
    }
}

async fn a_walk_tells_each_live_entity_once(store: Subject) {
    let events = write_random(&store).await;

    for at in (0..=events.len()).step_by(11) {
        let walked = all_of_walk(&store, Offset::new(at as u64), None).await;
        assert!(
            walked.iter().all(|entry| entry.event.event_type == EventType::Added && entry.previous_entity.is_none())
        );
        assert!(walked.iter().all(|entry| entry.event.previous_offset.is_none() && entry.event.changed.is_none()));
        let told: BTreeMap<_, _> = walked
            .iter()
            .map(|entry| (entry.event.entity_ref.clone(), entry.event.entity.clone().expect("live")))
            .collect();
        assert_eq!(told.len(), walked.len());
        assert_eq!(told, fold(&events[..at]), "at {at}");
    }
}

async fn a_walk_after_an_earlier_delivery_tells_removals(store: Subject) {
    let events = write_random(&store).await;
    let (seen, at) = (events.len() / 3, events.len() * 2 / 3);

    let walked = all_of_walk(&store, Offset::new(at as u64), Some(Offset::new(seen as u64))).await;

    // What the receiver held at `seen`, with the walk on top, is the state at `at`: no ghost is left.
    let mut receiver = fold(&events[..seen]);
    for entry in &walked {
        match &entry.event.entity {
            Some(entity) => receiver.insert(entry.event.entity_ref.clone(), entity.clone()),
            None => receiver.remove(&entry.event.entity_ref),
        };
    }
    assert_eq!(receiver, fold(&events[..at]));
    let removals: Vec<_> = walked.iter().filter(|entry| entry.event.event_type == EventType::Removed).collect();
    assert!(!removals.is_empty(), "the seed brings some");
    assert!(removals.iter().all(|entry| entry.event.offset.get() > seen as u64 && entry.previous_entity.is_some()));
}

async fn below_oldest_everything_is_expired(store: Subject) {
    store.append((0..10).map(|number| upsert("a", &number.to_string())).collect()).await;
    store.execute("update log_state set oldest = 5").await;

    let read = store.log.read(Offset::new(4), limits(10)).await;
    let state = store.log.state_at(Offset::new(4), None, limits(10)).await;
    let walk = store.log.walk(Offset::new(4), Offset::ZERO, None, limits(10)).await;

    assert!(matches!(read, Err(StoreError::Expired { asked, oldest, head })
        if (asked.get(), oldest.get(), head.get()) == (4, 5, 10)));
    assert!(matches!(state, Err(StoreError::Expired { .. })));
    assert!(matches!(walk, Err(StoreError::Expired { .. })));
    assert_eq!(store.log.read(Offset::new(5), limits(10)).await.expect("read").entries.len(), 5);
    assert_eq!(store.log.state_at(Offset::new(5), None, limits(10)).await.expect("state").entries.len(), 1);
}

async fn one_event_its_entity_and_its_history(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "2"), upsert("a", "3"), remove("a")]).await;
    let offsets = |entries: &[Arc<LogEntry>]| entries.iter().map(|entry| entry.event.offset.get()).collect::<Vec<_>>();

    let event = store.log.event(Offset::new(3)).await.expect("read").expect("there");
    let latest = store.log.latest(&entity_ref("a")).await.expect("read").expect("there");
    let history = store.log.history(&entity_ref("a"), None, limits(2)).await.expect("read");
    let older = store.log.history(&entity_ref("a"), Some(Offset::new(3)), limits(2)).await.expect("read");

    assert_eq!((event.event.event_type, event.previous_entity), (EventType::Updated, Some(json("1"))));
    assert_eq!((latest.event.offset, latest.previous_entity), (Offset::new(4), Some(json("3"))));
    assert_eq!((offsets(&history), offsets(&older)), (vec![4, 3], vec![1]));
    assert_eq!(history[1].previous_entity, Some(json("1")));
    assert!(store.log.latest(&entity_ref("c")).await.expect("read").is_none());
    assert!(store.log.history(&entity_ref("c"), None, limits(2)).await.expect("read").is_empty());
}

async fn held_refs_are_paged_in_byte_order(store: Subject) {
    let names = ["z", "a_b", "a.b", "a-b", "ab", "é", "a1"];
    store.append(names.iter().map(|name| upsert(name, "{}")).collect()).await;
    store.log.append(Append { source: source("files"), ..append(vec![upsert("mine", "{}")]) }).await.expect("appended");

    let mut paged: Vec<EntityRef> = Vec::new();
    loop {
        let page = store.log.held(&source("catalog"), paged.last(), 2).await.expect("held");
        if page.is_empty() {
            break;
        }
        paged.extend(page.into_iter().map(|held| held.entity_ref));
    }

    let mut expected = names.map(entity_ref);
    expected.sort_by(|one, other| one.as_str().as_bytes().cmp(other.as_str().as_bytes()));
    assert_eq!(paged, expected);
    assert_eq!(store.log.held_count(&source("catalog")).await.expect("counted"), names.len() as u64);
}

async fn many_refs_are_paged_without_loss(store: Subject) {
    // More than a step of the state looks at, with a long run of removed refs between the live ones.
    let names: Vec<String> = (0..4_000).map(|number| format!("e{number:05}")).collect();
    store.append(names.iter().map(|name| upsert(name, "{}")).collect()).await;
    store.append(names[500..3_500].iter().map(|name| remove(name)).collect()).await;
    let head = Offset::new(7_000);

    let first = store.log.state_at(head, None, limits(600)).await.expect("state");
    let last = first.entries.last().map(|entry| entry.event.entity_ref.clone());
    let second = store.log.state_at(head, last.as_ref(), limits(600)).await.expect("state");

    assert_eq!((first.entries.len(), first.more), (600, true));
    assert_eq!((second.entries.len(), second.more), (400, false));
    assert_eq!(second.entries.last().map(|entry| entry.event.entity_ref.clone()), Some(entity_ref("e03999")));
}
