//! Catalogs that are restored, restarted, frozen, forbidden; owners that are displaced.

use std::time::Duration;

use catalog_bridge_services::{Collation, PgBouncer, PgBouncerOptions, Postgres, PostgresOptions, shared};
use sqlx::Connection;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;

use super::super::{Connect, Settings};
use super::catalog::{Catalog, ROLE, body, delete, start, wait_for_truth};
use crate::source::testing::{Log, check_well_formed};
use crate::telemetry::ConsumerState;

fn quick(catalog: &Catalog) -> Settings {
    Settings {
        removal_interval: Duration::from_millis(50),
        page_rows: 7,
        connect_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(2),
        ..catalog.settings()
    }
}

async fn own_server() -> Postgres {
    Postgres::start(PostgresOptions::default()).await.expect("PostgreSQL starts")
}

async fn write_some(catalog: &Catalog, names: std::ops::Range<usize>, mark: &str) {
    for number in names {
        let (name, id) = (format!("c-{number}"), format!("id-{number}"));
        catalog.write(&name, &id, &body(&name, &id, mark)).await;
    }
}

/// The counter passes its old value again with other contents: only the server's identity can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_copy_driven_past_the_old_counter_is_noticed() {
    let mut server = own_server().await;
    let catalog = Catalog::on(&server, "restored", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..20, "old").await;
    server.stop().await.expect("stopped");
    let copy = tempfile::tempdir().expect("a directory");
    let copy = copy.path().join("copy");
    server.copy_data_to(&copy).await.expect("copied");
    server.start_again().await.expect("started");
    let bridge = start(quick(&catalog), &log);
    write_some(&catalog, 10..30, "lost").await;
    delete(&mut catalog.connect().await, "c-3").await.expect("deleted");
    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;

    server.stop().await.expect("stopped");
    server.replace_data_by(&copy).await.expect("replaced");
    server.start_again().await.expect("started");
    write_some(&catalog, 5..12, "new").await;
    write_some(&catalog, 40..60, "new").await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;

    let detail = bridge.status().expect("a status").detail;
    assert_ne!(detail["lastReconcile"]["repaired"], 0, "{detail}");
    assert!(detail["lastReconcile"]["reason"].as_str().is_some_and(|reason| reason.contains("server")), "{detail}");
    bridge.stop().await;
    check_well_formed(&log.events().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_that_went_back_is_noticed_while_running() {
    let catalog = Catalog::new("counter", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..20, "1").await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;

    catalog.run("update catalog_generation_counter set generation = 3").await;
    write_some(&catalog, 5..8, "2").await;

    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_for_state("reconciled", |state| *state == ConsumerState::Running).await;
    bridge.stop().await;
}

/// Rows changed behind the catalog's back, without numbers: the sum of the hashes or a reconcile on demand finds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconcile_on_demand_repairs_what_capture_cannot_see() {
    let catalog = Catalog::new("demand", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..20, "1").await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    catalog
        .run("set local session_replication_role = replica; \
              update final_entities set final_entity = replace(final_entity, '\"1\"', '\"2\"'), hash = 'x' where entity_id = 'id-5'")
        .await;

    bridge.handle.reconcile("catalog").expect("owned");

    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}

/// While the trigger that numbers changes is off, changes have no number: the gap is noticed by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_was_off_for_a_while_is_noticed() {
    let catalog = Catalog::new("trigger", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..20, "1").await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;

    catalog.run("alter table final_entities disable trigger final_entities_assign_generation_at_commit").await;
    write_some(&catalog, 5..8, "2").await;
    catalog.run("alter table final_entities enable trigger final_entities_assign_generation_at_commit").await;

    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
    check_well_formed(&log.events().await);
}

/// A stopped server still completes connects and swallows statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_and_a_killed_server_are_states_and_nothing_is_lost() {
    let mut server = own_server().await;
    let catalog = Catalog::on(&server, "frozen", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..20, "1").await;
    let mut settings = quick(&catalog);
    settings.statement_timeout = Duration::from_millis(200);
    let bridge = start(settings, &log);
    wait_for_truth(&bridge, &catalog).await;

    server.pause().expect("paused");
    let status = bridge.wait_for_state("retrying", |state| matches!(state, ConsumerState::Retrying { .. })).await;
    assert!(format!("{:?}", status.state).contains("no answer within"), "{status:?}");
    server.resume().expect("resumed");
    write_some(&catalog, 10..30, "2").await;
    wait_for_truth(&bridge, &catalog).await;
    server.kill9().await.expect("killed");
    bridge.wait_for_state("retrying", |state| matches!(state, ConsumerState::Retrying { .. })).await;
    server.start_again().await.expect("started");
    write_some(&catalog, 25..35, "3").await;

    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    bridge.stop().await;
    check_well_formed(&log.events().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_said_and_waited_for() {
    let catalog = Catalog::new("rights", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..3, "1").await;
    catalog.run(&format!("revoke select on final_entities from {ROLE}")).await;
    let bridge = start(quick(&catalog), &log);

    let status =
        bridge.wait_for_state("misconfigured", |state| matches!(state, ConsumerState::Misconfigured { .. })).await;
    assert!(format!("{:?}", status.state).contains("may not read final_entities"), "{status:?}");
    assert!(status.help.iter().any(|help| help.contains("grants --print")));
    catalog.run(&format!("grant select on final_entities to {ROLE}")).await;

    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}

/// Nothing may rest on the connection: in transaction mode every transaction may meet another server connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_is_no_obstacle() {
    let catalog = Catalog::new("pooled", Collation::English).await;
    let postgres = shared::postgres().await.expect("PostgreSQL starts");
    let pooler = PgBouncer::start(postgres, PgBouncerOptions::default()).await.expect("PgBouncer starts");
    let url: PgConnectOptions = pooler.url(&catalog.name).parse().expect("a URL");
    let log = Log::sqlite().await;
    let others: Vec<_> = (0..3)
        .map(|_| {
            let options = url.clone().extra_float_digits(None).statement_cache_capacity(0);
            tokio::spawn(async move {
                let mut connection = sqlx::PgConnection::connect_with(&options).await.expect("connected");
                loop {
                    super::catalog::run(&mut connection, "select pg_sleep(random() / 100)").await;
                }
            })
        })
        .collect();
    let connect = Connect::new(move || Ok(url.clone()));
    write_some(&catalog, 0..50, "1").await;
    let bridge = start(Settings { connect, ..quick(&catalog) }, &log);
    for round in 0..20 {
        write_some(&catalog, round..round + 10, &format!("{round}")).await;
        delete(&mut catalog.connect().await, &format!("c-{}", round * 2)).await.expect("deleted");
    }

    wait_for_truth(&bridge, &catalog).await;
    bridge.wait_until_running().await;
    let detail = bridge.status().expect("a status").detail;
    bridge.stop().await;
    others.iter().for_each(JoinHandle::abort);
    assert_eq!(detail["lastReconcile"]["reason"], "first start", "{detail}");
    check_well_formed(&log.events().await);
}

/// P9: who was displaced appends nothing and claims again in its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_displaced_owner_appends_nothing() {
    let catalog = Catalog::new("displaced", Collation::C).await;
    let log = Log::sqlite().await;
    let first = start(quick(&catalog), &log);
    first.wait_until_running().await;
    let second = start(quick(&catalog), &log);
    second.wait_for_state("standby", |state| matches!(state, ConsumerState::Standby { .. })).await;
    assert!(second.handle.reconcile("catalog").is_err());

    log.take_over(&first.owner).await;
    write_some(&catalog, 0..20, "1").await;

    wait_for_truth(&first, &catalog).await;
    first.stop().await;
    write_some(&catalog, 10..30, "2").await;
    wait_for_truth(&second, &catalog).await;
    second.wait_until_running().await;
    second.stop().await;
    check_well_formed(&log.events().await);
}

/// An older catalog gives no generations, and later ones do: each way goes on from the other, and repeats nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_catalog_is_captured_by_generations_from_then_on() {
    let catalog = Catalog::new("upgraded", Collation::English).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..20, "1").await;
    catalog.run("alter table final_entities disable trigger final_entities_assign_generation_at_commit").await;
    write_some(&catalog, 10..30, "2").await;
    let bridge = start(quick(&catalog), &log);
    wait_for_truth(&bridge, &catalog).await;
    let status = bridge.wait_for_state("running", |state| *state == ConsumerState::Running).await;
    assert_eq!(status.detail["capture"], "reconcile", "{}", status.detail);
    let events = log.events().await.len();
    bridge.stop().await;

    catalog.run("alter table final_entities enable trigger final_entities_assign_generation_at_commit").await;
    let bridge = start(quick(&catalog), &log);
    let status = bridge.wait_for_state("running", |state| *state == ConsumerState::Running).await;

    assert_eq!(status.detail["capture"], "generations", "{}", status.detail);
    assert_eq!(log.events().await.len(), events);
    write_some(&catalog, 15..40, "3").await;
    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_shown_and_tried_again() {
    let catalog = Catalog::new("panic", Collation::C).await;
    let log = Log::sqlite().await;
    write_some(&catalog, 0..3, "1").await;
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let connect = catalog.settings().connect;
    let connect = Connect::new(move || {
        assert!(!is_first.swap(false, std::sync::atomic::Ordering::AcqRel), "the first connect fails by a bug");
        connect.options()
    });

    let bridge = start(Settings { connect, ..quick(&catalog) }, &log);

    let is_told =
        |state: &ConsumerState| matches!(state, ConsumerState::Retrying { error, .. } if error.contains("by a bug"));
    bridge.wait_for_state("told", is_told).await;
    wait_for_truth(&bridge, &catalog).await;
    bridge.stop().await;
}
