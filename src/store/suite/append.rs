use catalog_bridge_history::{check_dense, check_well_formed};

use super::*;
use crate::store::{Idempotency, StoreError};

on_both_stores! {
    /// P1, P2.
    changes_become_dense_well_formed_events,
    /// P2.
    an_update_that_changes_nothing_is_no_event,
    an_event_keeps_what_the_source_said,
    a_foreign_ref_is_remembered_and_the_rest_appended,
    ingest_refuses_all_for_one_foreign_ref,
    a_ref_is_free_again_when_its_owner_lets_go,
    rejected_refs_are_kept_until_a_good_state_comes,
    /// P9.
    an_append_of_another_epoch_is_fenced,
    /// P9.
    an_append_at_another_position_is_fenced,
    position_and_events_are_one_commit,
    a_repeated_request_gets_the_first_answer,
    a_key_with_another_body_is_refused,
    what_is_too_large_is_refused_whole,
    large_bodies_are_compared_in_pieces,
    texts_that_look_like_trouble_come_back_as_they_are,
}

async fn changes_become_dense_well_formed_events(store: Subject) {
    store.append(vec![upsert("a", r#"{"v":1}"#), upsert("b", r#"{"v":1}"#)]).await;
    store.append(vec![upsert("a", r#"{"v":2}"#), remove("b"), remove("never-there")]).await;
    let appended = store.append(vec![upsert("b", r#"{"v":3}"#), upsert("b", r#"{"v":4}"#), remove("a")]).await;

    let events = store.events().await;
    check_dense(Offset::ZERO, &events).expect("dense");
    check_well_formed(&events).expect("well formed");
    let expected = ["added a", "added b", "updated a", "removed b", "added b", "updated b", "removed a"];
    assert_eq!(store.story().await, expected);
    assert_eq!(appended.last_event_offset, Offset::new(7));
    assert_eq!(events[2].changed.as_ref().map(|changed| changed.paths.clone()), Some(vec!["v".to_owned()]));
    assert_eq!(events[5].changed.as_ref().map(|changed| changed.paths.clone()), Some(vec!["v".to_owned()]));
}

async fn an_update_that_changes_nothing_is_no_event(store: Subject) {
    store.append(vec![upsert("a", r#"{"x":1,"y":2}"#)]).await;

    let Change::Upsert(mut same) = upsert("a", r#"{ "y":2, "x":1 }"#) else { unreachable!() };
    same.source_version = Some("v2".to_owned());
    same.source_position = Some(8);
    let appended = store.append(vec![Change::Upsert(same)]).await;

    assert_eq!((appended.appended, appended.unchanged), (0, 1));
    assert_eq!(appended.last_event_offset, Offset::new(1));
    let (held, owner) = store.log.held_by_ref(&[entity_ref("a")]).await.expect("held").remove(0);
    assert_eq!((held.source_version.as_deref(), held.source_position), (Some("v2"), Some(8)));
    assert_eq!(owner, source("catalog"));
}

async fn an_event_keeps_what_the_source_said(store: Subject) {
    let occurred_at = "2024-02-29T12:34:56.123456Z".parse().expect("a time");
    let text = "{ \"b\" : 1.50, \"a\":\"\\u00e9\"}";
    let Change::Upsert(mut stated) = upsert("a", text) else { unreachable!() };
    stated.occurred_at = Some(occurred_at);
    store.append(vec![Change::Upsert(stated), remove("a")]).await;

    let events = store.events().await;

    assert_eq!(events[0].entity.as_ref().map(JsonText::as_str), Some(text));
    assert_eq!(events[0].occurred_at, occurred_at);
    assert_eq!((events[0].uid.as_deref(), events[1].uid.as_deref()), (Some("uid-a"), Some("uid-a")));
    assert_eq!((events[0].cause, events[1].cause), (Cause::Capture, Cause::Reconcile));
    assert_eq!(events[1].occurred_at, events[1].recorded_at);
    assert!(events[1].entity.is_none());
}

async fn a_foreign_ref_is_remembered_and_the_rest_appended(store: Subject) {
    store.log.append(Append { source: source("files"), ..append(vec![upsert("a", "{}")]) }).await.expect("appended");

    let appended = store.append(vec![upsert("a", "[]"), upsert("b", "{}")]).await;

    assert_eq!((appended.appended, appended.refused), (1, 1));
    let rejected = store.log.rejected(&source("catalog"), None, 10).await.expect("rejected");
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].entity_ref, entity_ref("a").as_str());
    assert!(rejected[0].reason.contains("files"), "{}", rejected[0].reason);
    assert_eq!(rejected[0].source_position, Some(7));
    assert_eq!(store.story().await, ["added a", "added b"]);
}

async fn ingest_refuses_all_for_one_foreign_ref(store: Subject) {
    store.log.append(Append { source: source("files"), ..append(vec![upsert("b", "{}")]) }).await.expect("appended");

    let refusing = Append { on_owned: OnOwned::RefuseAll, ..append(vec![upsert("a", "{}"), upsert("b", "[]")]) };
    let answer = store.log.append(refusing).await;

    assert!(matches!(answer, Err(StoreError::RefOwned { index: 1, .. })), "{answer:?}");
    assert_eq!(store.story().await, ["added b"]);
}

async fn a_ref_is_free_again_when_its_owner_lets_go(store: Subject) {
    let files = |changes| Append { source: source("files"), ..append(changes) };
    store.log.append(files(vec![upsert("a", "{}")])).await.expect("appended");
    store.append(vec![upsert("a", "[]")]).await;
    store.log.append(files(vec![remove("a")])).await.expect("appended");

    let appended = store.append(vec![upsert("a", "[]")]).await;

    assert_eq!((appended.appended, appended.refused), (1, 0));
    assert_eq!(store.log.rejected_count(&source("catalog")).await.expect("counted"), 0);
    assert_eq!(store.log.held_count(&source("catalog")).await.expect("counted"), 1);
    assert_eq!(store.log.held_count(&source("files")).await.expect("counted"), 0);
}

async fn rejected_refs_are_kept_until_a_good_state_comes(store: Subject) {
    let bad = vec![rejected("a", "too deep"), rejected("b", "too large"), rejected("c", "no JSON")];
    store.log.append(Append { rejected: bad.clone(), ..append(vec![upsert("d", "{}")]) }).await.expect("appended");
    assert_eq!(store.log.rejected(&source("catalog"), None, 10).await.expect("rejected"), bad);
    assert_eq!(store.log.rejected(&source("catalog"), Some(&bad[0].entity_ref), 1).await.expect("rejected"), bad[1..2]);
    assert_eq!(store.log.rejected_count(&source("files")).await.expect("counted"), 0);

    store.append(vec![upsert("a", "{}"), remove("b")]).await;

    assert_eq!(store.log.rejected(&source("catalog"), None, 10).await.expect("rejected"), bad[2..]);
}

async fn an_append_of_another_epoch_is_fenced(store: Subject) {
    store.lease("catalog", 4).await;

    for epoch in [3, 5] {
        let late = Append { position: position(epoch, None, "1"), ..append(vec![upsert("a", "{}")]) };
        let answer = store.log.append(late).await;
        assert!(matches!(answer, Err(StoreError::Fenced(_))), "{answer:?}");
    }
    let nobody =
        Append { source: source("files"), position: position(1, None, "1"), ..append(vec![upsert("a", "{}")]) };
    let answer = store.log.append(nobody).await;

    assert!(matches!(answer, Err(StoreError::Fenced(_))), "{answer:?}");
    assert!(store.events().await.is_empty());
}

async fn an_append_at_another_position_is_fenced(store: Subject) {
    store.lease("catalog", 1).await;
    let step = |expected, new| Append { position: position(1, expected, new), ..append(vec![upsert("a", "{}")]) };
    store.log.append(step(None, "1")).await.expect("appended");

    for expected in [None, Some("2")] {
        let answer = store.log.append(step(expected, "3")).await;
        assert!(matches!(answer, Err(StoreError::Fenced(_))), "{answer:?}");
    }

    store.log.append(step(Some("1"), "2")).await.expect("appended");
}

async fn position_and_events_are_one_commit(store: Subject) {
    store.lease("catalog", 1).await;
    store.log.append(Append { source: source("files"), ..append(vec![upsert("b", "{}")]) }).await.expect("appended");
    let refused = Append {
        position: position(1, None, "1"),
        on_owned: OnOwned::RefuseAll,
        ..append(vec![upsert("a", "{}"), upsert("b", "{}")])
    };
    store.log.append(refused).await.expect_err("refused");

    let after = Append { position: position(1, None, "2"), ..append(vec![]) };
    let appended = store.log.append(after).await.expect("the position did not move");

    assert_eq!((appended.appended, appended.last_event_offset), (0, Offset::new(1)));
}

async fn a_repeated_request_gets_the_first_answer(store: Subject) {
    let request = |entity| Append {
        idempotency: Some(Idempotency { key: "token:1".to_owned(), body_hash: "aa".to_owned() }),
        ..append(vec![upsert("a", entity)])
    };
    let first = store.log.append(request("{}")).await.expect("appended");
    store.append(vec![upsert("a", "[]")]).await;

    let again = store.log.append(request("{}")).await.expect("answered");

    assert!(again.repeated && !first.repeated);
    assert_eq!((again.appended, again.last_event_offset), (first.appended, first.last_event_offset));
    assert_eq!(store.story().await, ["added a", "updated a"]);
    let elsewhere = Append { source: source("files"), ..request("{}") };
    assert_eq!(store.log.append(elsewhere).await.expect("another source").refused, 1);
}

async fn a_key_with_another_body_is_refused(store: Subject) {
    let request = |body_hash: &str, name| Append {
        idempotency: Some(Idempotency { key: "token:1".to_owned(), body_hash: body_hash.to_owned() }),
        ..append(vec![upsert(name, "{}")])
    };
    store.log.append(request("aa", "a")).await.expect("appended");

    let answer = store.log.append(request("bb", "b")).await;

    assert!(matches!(answer, Err(StoreError::IdempotencyMismatch)), "{answer:?}");
    assert_eq!(store.story().await, ["added a"]);
}

async fn what_is_too_large_is_refused_whole(store: Subject) {
    let many = (0..10_001).map(|number| upsert(&format!("e{number}"), "{}")).collect();
    let large = format!("\"{}\"", "x".repeat(9 * 1024 * 1024));

    let too_many = store.log.append(append(many)).await;
    let too_large = store.log.append(append(vec![upsert("a", &large), upsert("b", &large)])).await;

    assert!(matches!(too_many, Err(StoreError::TooLarge(_))), "{too_many:?}");
    assert!(matches!(too_large, Err(StoreError::TooLarge(_))), "{too_large:?}");
    assert!(store.events().await.is_empty());
}

async fn large_bodies_are_compared_in_pieces(store: Subject) {
    let large = |value: u32| format!(r#"{{"fill":"{}","value":{value}}}"#, "x".repeat(5 * 1024 * 1024));
    for name in ["a", "b", "c", "d", "e"] {
        store.append(vec![upsert(name, &large(1))]).await;
    }
    let small: Vec<Change> = ["a", "b", "c", "d", "e"].iter().map(|name| upsert(name, r#"{"value":2}"#)).collect();

    store.append(small).await;

    let page = store.log.read(Offset::new(5), ReadLimits { events_max: 10, bytes_max: 64 * 1024 * 1024 }).await;
    let entries = page.expect("read").entries;
    assert_eq!(entries.len(), 5);
    for entry in entries {
        let changed = entry.event.changed.clone().expect("an update");
        assert_eq!((changed.paths, changed.truncated), (vec!["fill".to_owned(), "value".to_owned()], false));
    }
}

async fn texts_that_look_like_trouble_come_back_as_they_are(store: Subject) {
    let text = r#"{"a":"' \" \\ \u0000 {} , NULL \ud83d\ude00 😀","b":"","c":"\u007f"}"#;
    let names = ["it's", "a,b", "{x}", "\"q\"", "back\\slash", "null", "ü-_.~"];
    store.append(names.iter().map(|name| upsert(name, text)).collect()).await;

    let events = store.events().await;

    assert_eq!(events.iter().map(|event| event.entity_ref.name()).collect::<Vec<_>>(), names);
    assert!(events.iter().all(|event| event.entity.as_ref().is_some_and(|entity| entity.as_str() == text)));
    let held = store.log.held(&source("catalog"), None, 100).await.expect("held");
    let mut sorted = names.map(entity_ref);
    sorted.sort();
    assert_eq!(held.into_iter().map(|held| held.entity_ref).collect::<Vec<_>>(), sorted);
    let by_ref = store.log.held_by_ref(&sorted).await.expect("held");
    assert_eq!(by_ref.len(), names.len());
    let appended = store.append(names.iter().map(|name| remove(name)).collect()).await;
    assert_eq!(appended.appended, names.len() as u64);
}
