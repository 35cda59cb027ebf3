use std::time::Duration;

use super::*;

on_both_stores! {
    a_redacted_entity_keeps_its_offsets_and_loses_its_bodies,
    a_new_log_id_bumps_every_sink,
    the_watch_follows_local_appends,
    a_store_opens_again_where_it_was,
    a_store_of_a_newer_kind_is_refused,
}

async fn a_redacted_entity_keeps_its_offsets_and_loses_its_bodies(store: Subject) {
    store.append(vec![upsert("a", r#"{"secret":1}"#), upsert("b", "1"), upsert("a", r#"{"secret":2}"#)]).await;
    let before = store.log.state().await.expect("state");

    let touched = store.log.redact(&entity_ref("a")).await.expect("redacted");

    assert_eq!(touched, 2);
    let page = store.log.read(Offset::ZERO, limits(10)).await.expect("read");
    assert_eq!(store.story().await, ["added a", "added b", "updated a"]);
    assert!(page.entries.iter().all(|entry| {
        let is_other = entry.event.entity_ref == entity_ref("b");
        is_other == entry.event.entity.is_some() && entry.previous_entity.is_none() && entry.event.changed.is_none()
    }));
    assert_eq!(page.state.redactions, before.redactions + 1);
    assert_eq!(store.log.watch().borrow().redactions, before.redactions + 1);
    // The same content again is no event: what was redacted does not come back by a reconcile.
    assert_eq!(store.append(vec![upsert("a", r#"{"secret":2}"#)]).await.appended, 0);
    assert_eq!(store.append(vec![upsert("a", "3")]).await.appended, 1);
    let changed = store.events().await.pop().and_then(|event| event.changed).expect("an update");
    assert!(changed.truncated && changed.paths.is_empty());
}

async fn a_new_log_id_bumps_every_sink(store: Subject) {
    store.append(vec![upsert("a", "1")]).await;
    store
        .execute("insert into checkpoints (kind, name, generation) values ('sink', 'one', 1), ('sink', 'two', 5)")
        .await;
    let before = store.log.state().await.expect("state");

    let log_id = store.log.new_log_id("a test").await.expect("renewed");

    let after = store.log.state().await.expect("state");
    assert_ne!(before.log_id, after.log_id);
    assert_eq!((after.log_id, after.head), (log_id, before.head));
    assert_eq!(store.log.watch().borrow().log_id, log_id);
    assert_eq!(store.numbers("select generation from checkpoints where kind = 'sink' order by name").await, [2, 6]);
}

async fn the_watch_follows_local_appends(store: Subject) {
    let mut watch = store.log.watch();
    store.append(vec![upsert("a", "1")]).await;

    let moved =
        tokio::time::timeout(Duration::from_secs(30), watch.wait_for(|state| state.head == Offset::new(1))).await;

    assert!(moved.expect("the watch moves").is_ok());
}

async fn a_store_opens_again_where_it_was(store: Subject) {
    store.append(vec![upsert("a", "1")]).await;
    let before = store.log.state().await.expect("state");
    let Subject { log, raw, settings, _directory } = store;
    drop((log, raw));

    let again = Subject::open_in(settings, _directory).await;

    assert_eq!(again.log.watch().borrow().clone(), before);
    assert_eq!(again.append(vec![upsert("a", "2")]).await.last_event_offset, Offset::new(2));
}

async fn a_store_of_a_newer_kind_is_refused(store: Subject) {
    store.execute("update log_state set min_reader_version = 1000").await;
    let Subject { log, raw, settings, _directory } = store;
    drop((log, raw));

    let refused = Raw::try_open(&settings).await;

    assert!(matches!(refused, Err(crate::store::StoreError::TooNew { needed: 1000, .. })));
}
