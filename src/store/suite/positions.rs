use std::time::Duration;

use catalog_bridge_services::{Postgres, PostgresOptions};
use chrono::Utc;

use super::*;
use crate::store::{
    Checkpoint, CheckpointMove, ClaimRequest, Claimed, ConsumerKind, LogState, SinkCommand, Skipped, Start, Store,
};

on_both_stores! {
    /// P9.
    one_of_many_claimers_owns,
    /// P9.
    a_lease_is_taken_only_past_expiry_and_flight,
    /// P9.
    a_former_owner_is_fenced,
    a_clean_release_hands_over_at_once,
    /// P6.
    another_fingerprint_is_another_generation,
    a_sink_starts_where_it_is_told_and_only_once,
    a_start_below_oldest_is_expired,
    /// P5.
    a_checkpoint_never_goes_back,
    /// P6.
    a_checkpoint_is_set_back_by_its_owner_only,
    /// P5.
    a_rewind_fences_the_owner_and_begins_a_generation,
    a_rewind_that_makes_no_sense_is_refused,
    /// P4.
    a_rewind_to_snapshot_tells_the_removals_after_the_checkpoint,
    a_rewind_inside_a_walk_tells_what_that_walk_had_not_told,
    /// P8.
    a_commanded_skip_is_recorded,
    commands_reach_the_owner_by_the_row,
    connector_state_is_kept_and_bounded,
    /// P9.
    a_source_position_moves_by_compare_and_set,
    status_is_published_by_the_owner_only,
    /// P9.
    a_new_log_id_fences_every_owner,
    /// P1.
    a_store_that_went_back_gets_a_new_log_id,
    /// P1.
    a_store_that_went_back_appends_only_under_a_new_log_id,
    other_replicas_learn_of_the_head,
}

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(600);

impl Subject {
    fn store(&self) -> Arc<dyn Store> {
        match self.raw.clone() {
            Raw::Postgres(store) => Arc::new(store),
            Raw::Sqlite(store) => Arc::new(store),
        }
    }

    async fn claim(&self, request: &ClaimRequest) -> Claimed {
        self.store().claim(request).await.expect("a claim is answered")
    }

    async fn owned(&self, request: &ClaimRequest) -> Checkpoint {
        match self.claim(request).await {
            Claimed::Ours(checkpoint) => *checkpoint,
            Claimed::HeldBy { owner, until } => panic!("held by {owner} until {until}"),
        }
    }

    async fn save(&self, to: &CheckpointMove) -> Result<(), StoreError> {
        self.store().save("sink", to).await
    }

    async fn command(&self, command: SinkCommand) -> Result<Checkpoint, StoreError> {
        self.store().command("sink", &command).await
    }

    async fn row(&self) -> Checkpoint {
        self.store().checkpoint(ConsumerKind::Sink, "sink").await.expect("read").expect("a row")
    }

    /// Everything that a walk of this row tells, such as `added a`.
    async fn walked(&self, row: &Checkpoint) -> Vec<String> {
        let (mut after, mut told) = (row.offset, Vec::new());
        loop {
            let at = row.walk.expect("a walk");
            let page = self.log.walk(at, after, row.walk_removals_above, limits(2)).await.expect("walked");
            for entry in &page.entries {
                after = entry.event.offset;
                told.push(format!("{} {}", entry.event.event_type.as_str(), entry.event.entity_ref.name()));
            }
            if !page.more {
                return told;
            }
        }
    }
}

fn request(owner: &str, time_to_live: Duration, flight: Duration) -> ClaimRequest {
    ClaimRequest {
        kind: ConsumerKind::Sink,
        name: "sink".to_owned(),
        owner: owner.to_owned(),
        time_to_live,
        flight,
        fingerprint: Some("all".to_owned()),
        start: Start::Earliest,
    }
}

fn to(row: &Checkpoint, offset: u64) -> CheckpointMove {
    CheckpointMove {
        epoch: row.epoch,
        generation: row.generation,
        offset: offset.into(),
        walk: row.walk,
        walk_removals_above: row.walk_removals_above,
        connector_state: None,
    }
}

#[track_caller]
fn assert_fenced<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Fenced(_))), "{result:?}");
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Refused(_))), "{result:?}");
}

async fn one_of_many_claimers_owns(store: Subject) {
    let claims = (0..8).map(|number| {
        let store = store.clone();
        async move { store.claim(&request(&format!("owner-{number}"), LONG, NONE)).await }
    });

    let claims = futures::future::join_all(claims).await;

    let row = store.row().await;
    let ours = claims.iter().filter(|claim| matches!(claim, Claimed::Ours(_))).count();
    assert_eq!((ours, row.epoch), (1, 1));
    for claim in claims {
        if let Claimed::HeldBy { owner, until } = claim {
            assert_eq!((Some(owner), Some(until)), (row.owner.clone(), row.lease_expires_at));
        }
    }
}

async fn a_lease_is_taken_only_past_expiry_and_flight(store: Subject) {
    // Expired at once, but requests of the first owner may land for long.
    store.owned(&request("first", NONE, LONG)).await;
    let claim = store.claim(&request("second", LONG, NONE)).await;
    assert!(matches!(claim, Claimed::HeldBy { owner, until } if owner == "first" && until > Utc::now()));

    // The same owner may claim again; now nothing of it is in flight.
    let again = store.owned(&request("first", NONE, NONE)).await;
    assert_eq!(again.epoch, 2);
    assert_eq!(store.owned(&request("second", LONG, NONE)).await.epoch, 3);
}

async fn a_former_owner_is_fenced(store: Subject) {
    let first = store.owned(&request("first", NONE, NONE)).await;
    let second = store.owned(&request("second", LONG, NONE)).await;

    assert_fenced(store.save(&to(&first, 0)).await);
    assert_fenced(store.store().renew(ConsumerKind::Sink, "sink", first.epoch, LONG).await);
    store.store().release(ConsumerKind::Sink, "sink", first.epoch).await.expect("no error");

    assert_eq!(store.row().await, second);
    let renewed = store.store().renew(ConsumerKind::Sink, "sink", second.epoch, LONG).await.expect("renewed");
    assert!(renewed.lease_expires_at >= second.lease_expires_at);
    assert!(matches!(store.claim(&request("third", LONG, NONE)).await, Claimed::HeldBy { .. }));
}

async fn a_clean_release_hands_over_at_once(store: Subject) {
    let first = store.owned(&request("first", LONG, LONG)).await;

    store.store().release(ConsumerKind::Sink, "sink", first.epoch).await.expect("released");

    assert_eq!(store.owned(&request("second", LONG, LONG)).await.epoch, 2);
}

async fn another_fingerprint_is_another_generation(store: Subject) {
    let first = store.owned(&request("first", NONE, NONE)).await;
    let move_with_state = CheckpointMove { connector_state: Some(json("{}")), ..to(&first, 0) };
    store.save(&move_with_state).await.expect("saved");
    let same = store.owned(&request("second", NONE, NONE)).await;
    assert_eq!((same.generation, same.connector_state.is_some()), (first.generation, true));

    let other = ClaimRequest { fingerprint: Some("other".to_owned()), ..request("third", NONE, NONE) };
    let other = store.owned(&other).await;

    assert_eq!((other.generation, other.connector_state), (first.generation + 1, None));
    assert_eq!(other.fingerprint.as_deref(), Some("other"));
}

async fn a_sink_starts_where_it_is_told_and_only_once(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("c", "1")]).await;
    let place = async |name: &str, start: Start| {
        let request = ClaimRequest { name: name.to_owned(), start, ..request("owner", LONG, NONE) };
        let row = store.owned(&request).await;
        (row.offset.get(), row.walk.map(Offset::get))
    };

    assert_eq!(place("snapshot", Start::Snapshot).await, (0, Some(3)));
    assert_eq!(place("earliest", Start::Earliest).await, (0, None));
    assert_eq!(place("latest", Start::Latest).await, (3, None));
    assert_eq!(place("at", Start::At(2.into())).await, (2, None));
    assert_eq!(place("at", Start::Latest).await, (2, None));
}

async fn a_start_below_oldest_is_expired(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("c", "1")]).await;
    store.execute("update log_state set oldest = 2").await;

    let below = ClaimRequest { start: Start::At(1.into()), ..request("owner", LONG, NONE) };
    let refused = store.store().claim(&below).await;

    assert!(matches!(refused, Err(StoreError::Expired { .. })), "{refused:?}");
    assert_eq!(store.owned(&request("owner", LONG, NONE)).await.offset, 2.into());
}

async fn a_checkpoint_never_goes_back(store: Subject) {
    let row = store.owned(&request("owner", LONG, NONE)).await;

    store.save(&to(&row, 5)).await.expect("saved");
    store.save(&to(&row, 3)).await.expect("saved");

    assert_eq!(store.row().await.offset, 5.into());
}

async fn a_checkpoint_is_set_back_by_its_owner_only(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("c", "1")]).await;
    let row = store.owned(&request("owner", NONE, NONE)).await;
    store.save(&to(&row, 3)).await.expect("saved");
    let set_back = async |to: CheckpointMove| store.store().set_back("sink", &to).await;

    set_back(to(&row, 1)).await.expect("set back");
    let back = store.row().await;
    set_back(to(&row, 2)).await.expect("never forward");
    let same = store.row().await;
    let next = store.owned(&request("other", LONG, NONE)).await;
    assert_fenced(set_back(to(&row, 0)).await);
    assert_fenced(set_back(CheckpointMove { generation: row.generation + 1, ..to(&next, 0) }).await);

    assert_eq!((back.offset, back.generation), (1.into(), row.generation));
    assert_eq!(same.offset, 1.into());
    assert_eq!(store.row().await.offset, 1.into());
}

async fn a_rewind_fences_the_owner_and_begins_a_generation(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1")]).await;
    let row = store.owned(&request("owner", LONG, NONE)).await;
    store.save(&to(&row, 2)).await.expect("saved");

    let rewound = store.command(SinkCommand::RewindTo(1.into())).await.expect("rewound");

    assert_eq!((rewound.offset, rewound.generation), (1.into(), row.generation + 1));
    assert_fenced(store.save(&to(&row, 2)).await);
    let again = store.owned(&request("owner", LONG, NONE)).await;
    assert_eq!((again.offset, again.generation), (1.into(), row.generation + 1));
    store.save(&to(&again, 2)).await.expect("saved");
}

async fn a_rewind_that_makes_no_sense_is_refused(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("a", "2")]).await;
    assert_refused(store.command(SinkCommand::Pause).await);
    let row = store.owned(&request("owner", LONG, NONE)).await;
    store.execute("update log_state set oldest = 2").await;

    assert_refused(store.command(SinkCommand::RewindTo(4.into())).await);
    let below = store.command(SinkCommand::RewindTo(1.into())).await;
    assert!(matches!(below, Err(StoreError::Expired { oldest, .. }) if oldest == 2.into()), "{below:?}");

    assert_eq!(store.row().await, row);
}

async fn a_rewind_to_snapshot_tells_the_removals_after_the_checkpoint(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("c", "1"), remove("a")]).await;
    let row = store.owned(&request("owner", LONG, NONE)).await;
    store.save(&to(&row, 4)).await.expect("saved");
    store.append(vec![remove("b"), upsert("c", "2")]).await;
    store.execute("update checkpoints set expired = true").await;

    let rewound = store.command(SinkCommand::RewindToSnapshot).await.expect("rewound");

    assert!(!rewound.expired);
    assert_eq!((rewound.offset, rewound.walk, rewound.walk_removals_above), (0.into(), Some(6.into()), Some(4.into())));
    assert_eq!(store.walked(&rewound).await, ["removed b", "added c"]);
}

async fn a_rewind_inside_a_walk_tells_what_that_walk_had_not_told(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("c", "1")]).await;
    let first = ClaimRequest { start: Start::Snapshot, ..request("owner", LONG, NONE) };
    let row = store.owned(&first).await;
    // Inside the walk at 3, a and b are told.
    store.save(&to(&row, 2)).await.expect("saved");
    store.append(vec![remove("a")]).await;

    let rewound = store.command(SinkCommand::RewindToSnapshot).await.expect("rewound");
    assert_eq!(store.walked(&rewound).await, ["added b", "added c", "removed a"]);

    // Again inside this second walk: it has told b, the removal of a is yet to come.
    let row = store.owned(&request("owner", LONG, NONE)).await;
    store.save(&to(&row, 2)).await.expect("saved");
    store.append(vec![remove("b")]).await;
    let rewound = store.command(SinkCommand::RewindToSnapshot).await.expect("rewound");
    assert_eq!(store.walked(&rewound).await, ["added c", "removed a", "removed b"]);
}

async fn a_commanded_skip_is_recorded(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1")]).await;
    let row = store.owned(&request("owner", LONG, NONE)).await;
    store.save(&to(&row, 1)).await.expect("saved");

    assert_refused(store.command(SinkCommand::Skip(1.into())).await);
    assert_refused(store.command(SinkCommand::Skip(3.into())).await);
    store.command(SinkCommand::Skip(2.into())).await.expect("recorded");
    store.command(SinkCommand::Skip(2.into())).await.expect("recorded again");

    let skipped = store.store().skipped("sink", 1.into(), 10).await.expect("read");
    let [record] = &skipped[..] else { panic!("{skipped:?}") };
    assert_eq!((record.offset, record.generation, record.by.as_str()), (2.into(), row.generation, "operator"));
    assert_eq!(record.entity_ref, Some(entity_ref("b")));
    // What the owner records afterwards changes nothing.
    let by_owner = Skipped { reason: "too large".to_owned(), by: "on_refused".to_owned(), ..record.clone() };
    store.store().record_skipped(&by_owner).await.expect("no error");
    assert_eq!(store.store().skipped("sink", 1.into(), 10).await.expect("read"), skipped);
    assert_eq!(store.store().skipped("sink", 2.into(), 10).await.expect("read"), []);
}

async fn commands_reach_the_owner_by_the_row(store: Subject) {
    let row = store.owned(&request("owner", LONG, NONE)).await;

    store.command(SinkCommand::Pause).await.expect("paused");
    let paused = store.store().renew(ConsumerKind::Sink, "sink", row.epoch, LONG).await.expect("renewed");
    store.command(SinkCommand::Resume).await.expect("resumed");
    let resumed = store.store().renew(ConsumerKind::Sink, "sink", row.epoch, LONG).await.expect("renewed");

    assert_eq!((paused.paused, resumed.paused), (true, false));
    assert_eq!((paused.commands, resumed.commands), (row.commands + 1, row.commands + 2));
}

async fn connector_state_is_kept_and_bounded(store: Subject) {
    let row = store.owned(&request("owner", LONG, NONE)).await;
    let state = |bytes: usize| Some(json(&format!("\"{}\"", "x".repeat(bytes - 2))));

    store.save(&CheckpointMove { connector_state: state(4096), ..to(&row, 1) }).await.expect("saved");
    let too_large = store.save(&CheckpointMove { connector_state: state(4097), ..to(&row, 2) }).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge(_))), "{too_large:?}");
    store.save(&to(&row, 3)).await.expect("saved");

    let row = store.row().await;
    assert_eq!((row.offset, row.connector_state), (3.into(), state(4096)));
}

async fn a_source_position_moves_by_compare_and_set(store: Subject) {
    let catalog = source("catalog");
    let request =
        ClaimRequest { kind: ConsumerKind::Source, name: "catalog".to_owned(), ..request("owner", LONG, NONE) };
    let row = store.owned(&request).await;
    let save = async |epoch, expected, new| {
        store.store().save_position(&catalog, &position(epoch, expected, new).expect("a position")).await
    };

    save(row.epoch, None, "1").await.expect("saved");
    assert_fenced(save(row.epoch, None, "2").await);
    assert_fenced(save(row.epoch + 1, Some("1"), "2").await);
    save(row.epoch, Some("1"), "2").await.expect("saved");

    let row = store.store().checkpoint(ConsumerKind::Source, "catalog").await.expect("read").expect("a row");
    assert_eq!((row.source_position, row.walk), (Some(json("2")), None));
}

async fn status_is_published_by_the_owner_only(store: Subject) {
    let row = store.owned(&request("owner", LONG, NONE)).await;

    store.store().save_status(ConsumerKind::Sink, "sink", row.epoch, &json("{}")).await.expect("saved");
    assert_fenced(store.store().save_status(ConsumerKind::Sink, "sink", row.epoch + 1, &json("[]")).await);

    let rows = store.store().checkpoints().await.expect("read");
    assert_eq!(rows.iter().map(|row| row.status.clone()).collect::<Vec<_>>(), [Some(json("{}"))]);
}

async fn a_new_log_id_fences_every_owner(store: Subject) {
    let sink = store.owned(&request("owner", LONG, NONE)).await;
    let request_of_source =
        ClaimRequest { kind: ConsumerKind::Source, name: "catalog".to_owned(), ..request("owner", LONG, NONE) };
    let row = store.owned(&request_of_source).await;

    store.log.new_log_id("a test").await.expect("renewed");

    assert_fenced(store.save(&to(&sink, 0)).await);
    let positioned = Append { position: position(row.epoch, None, "1"), ..append(vec![upsert("a", "1")]) };
    assert_fenced(store.log.append(positioned).await);
    let again = store.owned(&request("owner", LONG, NONE)).await;
    assert!(
        again.epoch > sink.epoch + 1000,
        "an owner that the copy never knew may hold a higher epoch: {}",
        again.epoch
    );
    assert_eq!(again.generation, sink.generation + 1);
}

/// As if the database had been replaced by a copy taken after `head` events.
async fn go_back_to(store: &Subject, head: u64) {
    store.execute(&format!("delete from events where event_offset > {head}")).await;
    store.execute(&format!("update log_state set head = {head}")).await;
}

async fn seen(store: &Subject) -> LogState {
    let state = store.log.state().await.expect("state");
    assert_eq!(*store.log.watch().borrow(), state);
    state
}

async fn a_store_that_went_back_gets_a_new_log_id(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1")]).await;
    let sink = store.owned(&request("owner", LONG, NONE)).await;
    let before = seen(&store).await;

    go_back_to(&store, 1).await;

    let after = seen(&store).await;
    assert_eq!(after.head, 1.into());
    assert_ne!(after.log_id, before.log_id);
    assert_eq!(store.row().await.generation, sink.generation + 1);
    assert_eq!(seen(&store).await, after, "one restore is one new id");
}

async fn a_store_that_went_back_appends_only_under_a_new_log_id(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1")]).await;
    let before = seen(&store).await;

    go_back_to(&store, 1).await;
    store.append(vec![upsert("c", "1")]).await;

    let after = seen(&store).await;
    assert_eq!(after.head, 2.into());
    assert_ne!(after.log_id, before.log_id);
}

async fn other_replicas_learn_of_the_head(store: Subject) {
    let replica = store.replica().await;
    let mut watch = replica.log.watch();

    store.append(vec![upsert("a", "1")]).await;

    let moved = tokio::time::timeout(Duration::from_secs(30), watch.wait_for(|state| state.head == 1.into())).await;
    assert!(moved.expect("the replica learns of the head").is_ok());
    let mut watch = replica.log.watch();
    let log_id = store.log.new_log_id("a test").await.expect("renewed");
    let moved = tokio::time::timeout(Duration::from_secs(30), watch.wait_for(|state| state.log_id == log_id)).await;
    assert!(moved.expect("the replica learns of the new id").is_ok());
}

/// P1: the log was written on another server, database, table or timeline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_incarnation_is_another_log() {
    let store = Subject::postgres().await;
    store.append(vec![upsert("a", "1")]).await;
    let before = seen(&store).await;
    assert_eq!(seen(&store.replica().await).await.log_id, before.log_id, "the same server is the same log");

    store.execute("update log_state set incarnation = 'elsewhere'").await;
    let restored = seen(&store.replica().await).await;

    assert_ne!(restored.log_id, before.log_id);
    assert_eq!(restored.head, before.head);
    assert_eq!(seen(&store.replica().await).await.log_id, restored.log_id, "settled once");
}

/// P1: under a running daemon the server's data is replaced by an older copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_server_is_another_log() {
    let mut server = Postgres::start(PostgresOptions::default()).await.expect("a server");
    let settings = Settings::postgres(server.fresh_database("store").await.expect("a database"));
    let store = Subject::open(settings, tempfile::tempdir().expect("a directory")).await;
    store.append(vec![upsert("a", "1")]).await;
    let backup = tempfile::tempdir().expect("a directory");
    let backup = backup.path().join("backup");
    server.stop().await.expect("stopped");
    server.copy_data_to(&backup).await.expect("copied");
    server.start_again().await.expect("started");
    let more = || append(vec![upsert("b", "1"), upsert("c", "1")]);
    let appended = patiently(async || store.log.append(more()).await.ok()).await;
    let log_id = patiently(async || store.log.state().await.ok()).await.log_id;
    assert_eq!(appended.last_event_offset, 3.into());

    server.stop().await.expect("stopped");
    server.replace_data_by(&backup).await.expect("restored");
    server.start_again().await.expect("started");
    let page = patiently(async || store.log.read(Offset::ZERO, limits(9)).await.ok()).await;

    assert_eq!(page.entries.len(), 1);
    assert_ne!(page.state.log_id, log_id, "nothing of the copy is served under the old id");
    let appended = patiently(async || store.log.append(more()).await.ok()).await;
    assert_eq!(appended.last_event_offset, 3.into());
    assert_eq!(seen(&store).await.log_id, page.state.log_id, "one restore is one new id");
}

/// The answer, as soon as there is one: while a server starts requests fail.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("the server answers again")
}

/// P1: the file was replaced by an older copy while the daemon was down; what it had is noted in the lock's file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_file_is_another_log() {
    let store = Subject::sqlite().await;
    let Backend::Sqlite { path } = store.settings.backend.clone() else { panic!("a file") };
    store.append(vec![upsert("a", "1")]).await;
    let copy = path.with_extension("copy");
    let vacuum = format!("vacuum into '{}'", copy.display());
    let Raw::Sqlite(sqlite) = &store.raw else { panic!("a file") };
    sqlite.vacuum_into(&vacuum).await;
    store.append(vec![upsert("b", "1")]).await;
    let before = seen(&store).await;
    let (settings, directory) = (store.settings.clone(), store._directory.clone());
    sqlite.close().await;
    drop(store);

    let unchanged = Subject::open_in(settings.clone(), directory.clone()).await;
    assert_eq!(seen(&unchanged).await, before);
    let Raw::Sqlite(sqlite) = &unchanged.raw else { panic!("a file") };
    sqlite.close().await;
    drop(unchanged);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    std::fs::copy(&copy, &path).expect("restored");
    let restored = seen(&Subject::open_in(settings, directory).await).await;

    assert_eq!(restored.head, 1.into());
    assert_ne!(restored.log_id, before.log_id);
}
