//! What only a server can do to a store: stall, cut a connection, lose an answer.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use catalog_bridge_history::{check_dense, check_well_formed};
use catalog_bridge_services::{Postgres, PostgresOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;

/// What a proxy between the store and its server does to the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The server commits, and the connection breaks before its answer arrives.
    AnswerLost = 1,
    /// The connection breaks before the server hears of it.
    RequestLost = 2,
    /// The server commits, and neither an answer nor an end of the connection arrives.
    AnswerSwallowed = 3,
}

struct Proxy {
    fault: Arc<AtomicU8>,
}

impl Proxy {
    /// A store behind a proxy, with a lease so short that time-outs come soon.
    async fn with_store() -> (Proxy, Subject) {
        let direct = url::Url::parse(&fresh_database().await).expect("a url");
        let server = (direct.host_str().expect("a host").to_owned(), direct.port().expect("a port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut url = direct.clone();
        url.set_port(Some(listener.local_addr().expect("an address").port())).expect("a port");
        let fault = Arc::new(AtomicU8::new(0));
        let proxy = Proxy { fault: Arc::clone(&fault) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server.clone()).await else { return };
                tokio::spawn(carry(client, server, Arc::clone(&fault)));
            }
        });
        let mut settings = Settings::postgres(url.as_str());
        settings.lease = Duration::from_secs(10);
        (proxy, Subject::open(settings, tempfile::tempdir().expect("a directory")).await)
    }

    fn arm(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn has_struck(&self) -> bool {
        self.fault.load(Ordering::SeqCst) == 0
    }
}

async fn carry(client: TcpStream, server: TcpStream, fault: Arc<AtomicU8>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let (mut request, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = from_client.read(&mut request) => {
                let Ok(length @ 1..) = read else { return };
                let is_commit = request[..length].windows(7).any(|window| window == b"commit\0");
                let strikes = if is_commit { fault.swap(0, Ordering::SeqCst) } else { 0 };
                if strikes == Fault::RequestLost as u8 {
                    return;
                }
                if to_server.write_all(&request[..length]).await.is_err() {
                    return;
                }
                if strikes != 0 {
                    let _ = from_server.read(&mut answer).await;
                    if strikes == Fault::AnswerSwallowed as u8 {
                        std::future::pending::<()>().await;
                    }
                    return;
                }
            }
            read = from_server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                if to_client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// P1, P9: what the server committed is answered as committed, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_is_found_again() {
    let (proxy, store) = Proxy::with_store().await;
    store.lease("catalog", 1).await;

    for (step, fault) in [Fault::AnswerLost, Fault::AnswerSwallowed].into_iter().enumerate() {
        proxy.arm(fault);
        let (expected, new) = (step.checked_sub(1).map(|step| step.to_string()), step.to_string());
        let name = format!("e{step}");
        let append = Append { position: position(1, expected.as_deref(), &new), ..append(vec![upsert(&name, "1")]) };
        let appended = store.log.append(append).await.expect("the commit is found");

        assert!(proxy.has_struck());
        assert_eq!(appended.last_event_offset, Offset::new(step as u64 + 1));
    }
    // The same for an append that moves nothing but the position.
    proxy.arm(Fault::AnswerLost);
    store.log.append(Append { position: position(1, Some("1"), "2"), ..append(vec![]) }).await.expect("found");

    assert!(proxy.has_struck());
    assert_eq!(store.story().await, ["added e0", "added e1"]);
}

/// P1: what the server did not commit is not answered as committed, and may be tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_an_error_and_leaves_nothing() {
    let (proxy, store) = Proxy::with_store().await;
    proxy.arm(Fault::RequestLost);

    let answer = store.log.append(append(vec![upsert("a", "1")])).await;

    assert!(proxy.has_struck());
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    assert!(store.events().await.is_empty());
    assert_eq!(store.append(vec![upsert("a", "1")]).await.last_event_offset, Offset::new(1));
}

/// P9: who stops in the middle of an append loses the head lock, and what wakes writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_append_does_not_hold_up_the_others() {
    let mut settings = Settings::postgres(fresh_database().await);
    settings.lease = Duration::from_secs(10);
    let store = Subject::open(settings, tempfile::tempdir().expect("a directory")).await;
    let Raw::Postgres(postgres) = &store.raw else { unreachable!() };
    let mut frozen = postgres.begin_write().await.expect("begun");
    raw_sql("select from log_state for update; update log_state set head = 99")
        .execute(&mut *frozen)
        .await
        .expect("locked");

    let appended = store.append(vec![upsert("a", "1")]).await;

    assert_eq!(appended.last_event_offset, Offset::new(1));
    assert!(frozen.commit().await.is_err(), "the server ended the frozen transaction");
    assert_eq!(store.log.state().await.expect("state").head, Offset::new(1));
}

/// P1, P3: through kills of the server nothing that was answered is lost, and nothing is half there or twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_appends_survive_kills_of_the_server() {
    let mut server = Postgres::start(PostgresOptions::default()).await.expect("a server");
    let url = server.fresh_database("store").await.expect("a database");
    let mut settings = Settings::postgres(url);
    settings.lease = Duration::from_secs(10);
    let store = Subject::open(settings, tempfile::tempdir().expect("a directory")).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let (store, is_done) = (store.clone(), Arc::clone(&is_done));
        writers.spawn(async move {
            let mut answered = Vec::new();
            let mut number = 0;
            while !is_done.load(Ordering::SeqCst) {
                number += 1;
                let names = ["x", "y", "z"].map(|part| format!("w{writer}-{number}-{part}"));
                let changes = names.iter().map(|name| upsert(name, "1")).collect();
                match store.log.append(append(changes)).await {
                    Ok(_) => answered.extend(names),
                    Err(StoreError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => panic!("{error}"),
                }
            }
            answered
        });
    }

    for _ in 0..3 {
        let head = store.log.watch().borrow().head;
        let mut watch = store.log.watch();
        let moved = watch.wait_for(|state| state.head.get() > head.get() + 30);
        tokio::time::timeout(Duration::from_secs(60), moved).await.expect("writers get on").expect("watched");
        server.kill9().await.expect("killed");
        server.start_again().await.expect("started");
    }
    is_done.store(true, Ordering::SeqCst);
    let answered: Vec<String> = writers.join_all().await.into_iter().flatten().collect();

    let events = store.events().await;
    check_dense(Offset::ZERO, &events).expect("dense");
    check_well_formed(&events).expect("well formed");
    let names: Vec<&str> = events.iter().map(|event| event.entity_ref.name()).collect();
    let there: HashSet<&str> = names.iter().copied().collect();
    assert_eq!(there.len(), names.len(), "each name was added once");
    assert!(answered.iter().all(|name| there.contains(name.as_str())));
    let is_whole = |chunk: &[&str]| chunk[0].trim_end_matches('x') == chunk[2].trim_end_matches('z');
    assert!(names.len().is_multiple_of(3) && names.chunks(3).all(is_whole), "whole appends, one after the other");
}
