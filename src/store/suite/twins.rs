use std::collections::BTreeSet;

use super::*;

/// Both stores' migrations make the same tables with the same columns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_have_the_same_tables_and_columns() {
    let (postgres, sqlite) = (Subject::postgres().await, Subject::sqlite().await);

    let ours = postgres
        .texts(
            "select table_name || '.' || column_name || case is_nullable when 'YES' then '' else ' not null' end
             from information_schema.columns where table_schema = current_schema",
        )
        .await;
    let theirs = sqlite
        .texts(
            "select t.name || '.' || c.name || case when c.\"notnull\" or c.pk then ' not null' else '' end
             from sqlite_master t join pragma_table_info(t.name) c
             where t.type = 'table' and t.name not like 'sqlite_%'",
        )
        .await;

    let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) = (ours.into_iter().collect(), theirs.into_iter().collect());
    assert!(ours.contains("events.event_offset not null"), "{ours:?}");
    assert_eq!(ours, theirs);
}

/// And the same migrations, by number and name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_have_the_same_migrations() {
    let (postgres, sqlite) = (Subject::postgres().await, Subject::sqlite().await);
    const APPLIED: &str = "select cast(version as text) || ' ' || name from migrations order by version";

    assert_eq!(postgres.texts(APPLIED).await, sqlite.texts(APPLIED).await);
}

/// Replicas that start together, some of them through PgBouncer, migrate once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_migrate_once() {
    let direct = fresh_database().await;
    let settings = [Settings::postgres(pooled(&direct).await), Settings::postgres(direct)];

    let opened = futures::future::join_all((0..6).map(|replica| Raw::try_open(&settings[replica % 2]))).await;

    let ids: Vec<_> =
        opened.into_iter().map(|raw| raw.expect("the store opens").log().watch().borrow().log_id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

/// A second process waits for the file instead of writing beside the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sqlite_store_waits_for_the_first() {
    let first = Subject::sqlite().await;
    first.append(vec![upsert("a", "1")]).await;
    let settings = first.settings.clone();
    let Subject { log, raw, settings: _, _directory } = first;

    let mut second = tokio::spawn(async move { Raw::try_open(&settings).await });
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(600), &mut second).await;
    assert!(waiting.is_err(), "the second store opened beside the first");
    drop((log, raw));

    let second = tokio::time::timeout(std::time::Duration::from_secs(30), second).await.expect("opens").expect("ran");
    assert_eq!(second.expect("the store opens").log().watch().borrow().head, Offset::new(1));
}

/// A redacted body is in none of the store's files, also not in free pages or in the write-ahead log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redacted_body_leaves_the_sqlite_files() {
    let store = Subject::sqlite().await;
    let body = format!(r#"{{"fill":"{}","secret":"needle-4711"}}"#, "x".repeat(20_000));
    store.append(vec![upsert("a", &body), upsert("a", "{}")]).await;
    let holds_it = || {
        let files = std::fs::read_dir(store._directory.path()).expect("listed");
        files.filter_map(Result::ok).any(|file| {
            let content = std::fs::read(file.path()).expect("read");
            content.windows(11).any(|window| window == b"needle-4711")
        })
    };
    assert!(holds_it());

    store.log.redact(&entity_ref("a")).await.expect("redacted");

    assert!(!holds_it());
}
