use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{Server, answer, component, settings};

/// Waits until so many long polls are parked, as the metrics tell.
async fn parked(server: &Server, count: usize) {
    for _ in 0..600 {
        let metrics = answer(server.client.get(format!("{}/metrics", server.root))).await;
        if metrics.body.as_str().expect("text").contains(&format!("catalog_bridge_http_waiters {count}\n")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{count} long polls were never parked");
}

fn poll(server: &Server, query: &str) -> tokio::task::JoinHandle<super::harness::Answer> {
    tokio::spawn(answer(server.client.get(format!("{}/events?{query}", server.base))))
}

#[tokio::test]
async fn a_long_poll_wakes_with_the_event() {
    let (server, _) = Server::start().await;
    let waiting = poll(&server, "offset=0&wait=55");
    parked(&server, 1).await;

    server.put("a", "o").await;

    let reply = waiting.await.expect("no panic").ok();
    assert_eq!((&reply["lastEventOffset"], &reply["events"][0]["offset"]), (&1.into(), &1.into()));
    server.stop().await;
}

#[tokio::test]
async fn a_long_poll_ends_empty_after_its_wait() {
    let (server, _) = Server::start().await;
    let started = Instant::now();

    let reply = server.get("/events?offset=0&wait=1").await.ok();

    assert!(started.elapsed() >= Duration::from_millis(900), "it waits");
    assert_eq!((&reply["lastEventOffset"], reply["events"].as_array().map(Vec::len)), (&0.into(), Some(0)));
    server.stop().await;
}

/// A waiting reader costs no query, and an event that its filter leaves out does not end its poll.
#[tokio::test]
async fn parked_polls_cost_no_query_and_pass_over_what_the_filter_leaves_out() {
    let (server, store) = Server::start().await;
    let polls: Vec<_> = (0..40).map(|_| poll(&server, "offset=0&wait=55&filter=spec.owner=mine")).collect();
    parked(&server, 40).await;
    let before = store.reads.load(Ordering::Relaxed);

    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(store.reads.load(Ordering::Relaxed), before, "waiting costs nothing");
    server.put("a", "theirs").await;
    parked(&server, 40).await;
    server.put("b", "mine").await;

    for waiting in polls {
        let reply = waiting.await.expect("no panic").ok();
        assert_eq!((reply["events"].as_array().map(Vec::len), &reply["lastEventOffset"]), (Some(1), &2.into()));
    }
    let reads = store.reads.load(Ordering::Relaxed) - before;
    assert!(reads <= 4, "two events woke 40 readers with {reads} queries");
    server.stop().await;
}

#[tokio::test]
async fn shutdown_releases_long_polls_at_once() {
    let (server, _) = Server::start().await;
    let polls: Vec<_> = (0..5).map(|_| poll(&server, "offset=0&wait=55")).collect();
    parked(&server, 5).await;
    let started = Instant::now();

    server.shut_down();

    for waiting in polls {
        assert_eq!(waiting.await.expect("no panic").ok()["lastEventOffset"], 0);
    }
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(9), "it did not wait for the drain's end");
}

#[tokio::test]
async fn a_parked_poll_learns_that_the_log_changed() {
    let (server, store) = Server::start().await;
    let waiting = poll(&server, "offset=0&wait=55");
    parked(&server, 1).await;

    store.change_log_id(5);

    let reply = waiting.await.expect("no panic");
    assert_eq!((reply.status, reply.problem()), (409, "log-changed"));
    server.stop().await;
}

#[tokio::test]
async fn too_many_waiters_are_sent_away_with_retry_after() {
    let mut narrow = settings();
    narrow.limits.waiters_max = 2;
    let (server, _) = Server::with(narrow).await;
    let _polls: Vec<_> = (0..2).map(|_| poll(&server, "offset=0&wait=55")).collect();
    parked(&server, 2).await;

    let refused = server.get("/events?offset=0").await;
    let at_once = server.get("/events?offset=0&wait=0").await;

    assert_eq!((refused.status, refused.problem(), refused.header("retry-after")), (503, "too-busy", "5"));
    assert_eq!(at_once.status, 200, "who does not wait is served");
    server.stop().await;
}

/// A reader who stops reading must not hold its reply for ever.
#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let mut impatient = settings();
    impatient.limits.stall_timeout = Duration::from_millis(300);
    let (server, _) = Server::with(impatient).await;
    let mut entity = component("large", "o");
    entity["spec"]["definition"] = "x".repeat(15 * 1024 * 1024).into();
    answer(server.ingest(&serde_json::json!([{ "upsert": entity }]))).await.ok();
    let mut stream = TcpStream::connect(server.root.trim_start_matches("http://")).await.expect("connected");
    stream.write_all(b"GET /api/catalog/events?offset=0 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");

    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut received = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut received)).await.expect("it ends");
    assert!(received.len() < 15 * 1024 * 1024, "the reply was cut off");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_is_cut_off() {
    let mut impatient = settings();
    impatient.limits.header_timeout = Duration::from_millis(300);
    impatient.limits.body_timeout = Duration::from_millis(300);
    let (server, _) = Server::with(impatient).await;
    let address = server.root.trim_start_matches("http://").to_owned();
    let talk = async |request: &[u8]| {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        stream.write_all(request).await.expect("sent");
        let mut received = Vec::new();
        let _ =
            tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut received)).await.expect("it ends");
        String::from_utf8_lossy(&received).into_owned()
    };

    talk(b"GET /healthz HTTP/1.1\r\nhost").await;
    let request = "POST /api/catalog/sources/push/changes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
        connection: close\r\ncontent-length: 100\r\n\r\n{";
    let reply = talk(request.as_bytes()).await;

    assert!(reply.contains("408") && reply.contains("request-timeout"), "{reply}");
    server.stop().await;
}
