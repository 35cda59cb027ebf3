use std::io::Write;
use std::sync::atomic::Ordering;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::harness::{Answer, Server, answer, component, settings};

#[track_caller]
fn check(reply: &Answer, status: u16, problem: &str, field: &str) {
    assert_eq!((reply.status, reply.problem()), (status, problem), "{}", reply.body);
    assert_eq!(reply.body["field"], field, "{}", reply.body);
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.body["status"], status);
    assert!(reply.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", reply.body);
}

#[tokio::test]
async fn bad_parameters_are_named() {
    let (server, _) = Server::start().await;
    for offset in ["-1", "1.5", "99999999999999999999999999", "9223372036854775808", "abc", "", "%00", "1e3", "+1"] {
        check(&server.get(&format!("/events?offset={offset}")).await, 400, "invalid-parameter", "offset");
    }
    for limit in ["0", "abc", "1001", "-5", "1.5", ""] {
        check(&server.get(&format!("/events?limit={limit}")).await, 400, "invalid-parameter", "limit");
        check(&server.get(&format!("/entities?limit={limit}")).await, 400, "invalid-parameter", "limit");
    }
    for wait in ["56", "-1", "abc"] {
        check(&server.get(&format!("/events?wait={wait}")).await, 400, "invalid-parameter", "wait");
    }
    for filter in ["", ",", "=a", "kind=a,=b"] {
        check(&server.get(&format!("/events?filter={filter}")).await, 400, "invalid-parameter", "filter");
        check(&server.get(&format!("/entities?filter={filter}")).await, 400, "invalid-parameter", "filter");
    }
    check(&server.get("/events?type=deleted").await, 400, "invalid-parameter", "type");
    check(&server.get("/events?changes=").await, 400, "invalid-parameter", "changes");
    check(&server.get("/events?logId=abc").await, 400, "invalid-parameter", "logId");
    check(&server.get("/events?limit=1&limit=2").await, 400, "invalid-parameter", "limit");
    for cursor in ["abc", "%25", "eyJzIjoxfQ", ""] {
        check(&server.get(&format!("/entities?cursor={cursor}")).await, 400, "invalid-parameter", "cursor");
    }
    check(&server.get("/events/abc").await, 400, "invalid-parameter", "offset");
    check(&server.get("/events/-1").await, 400, "invalid-parameter", "offset");
    check(&server.get("/entities/by-name/%ff/c/d").await, 400, "invalid-parameter", "path");
    check(&server.get("/entities/by-name/a:b/c/d").await, 400, "invalid-parameter", "path");
    check(&server.get("/events?ofset=3").await, 400, "unknown-parameter", "ofset");
    check(&server.get("/events/head?x=3").await, 400, "unknown-parameter", "x");
    check(&server.get("/nowhere").await, 404, "not-found", "path");
    server.stop().await;
}

#[tokio::test]
async fn another_method_is_told_which_are_taken() {
    let (server, _) = Server::start().await;

    let reply = answer(server.client.delete(format!("{}/events", server.base))).await;

    check(&reply, 405, "method-not-allowed", "method");
    assert_eq!(reply.header("allow"), "GET,HEAD");
    server.stop().await;
}

#[tokio::test]
async fn offsets_of_another_log_are_told() {
    let (server, store) = Server::start().await;
    for owner in ["1", "2", "3"] {
        server.put("a", owner).await;
    }
    store.forget(1);

    insta::assert_json_snapshot!(server.get("/events?offset=9").await.body, @r#"
    {
      "bootstrap": "/api/catalog/entities",
      "detail": "offset 9 is above the log's head 3: it belongs to another log; read /entities and follow from its lastEventOffset",
      "field": "offset",
      "headOffset": 3,
      "logId": "11112222-3333-4444-5555-666677778888",
      "oldestOffset": 1,
      "status": 409,
      "title": "the offset is above the log's head: bootstrap again",
      "type": "urn:catalog-bridge:problem:offset-ahead"
    }
    "#);
    insta::assert_json_snapshot!(server.get("/events?offset=0&filter=kind=a,spec.owner&filter=kind=b").await.body, @r#"
    {
      "bootstrap": "/api/catalog/entities?filter=kind%3Da%2Cspec.owner&filter=kind%3Db",
      "detail": "offset 0 is no longer kept, the oldest to resume after is 1: read /entities and follow from its lastEventOffset",
      "field": "offset",
      "headOffset": 3,
      "logId": "11112222-3333-4444-5555-666677778888",
      "oldestOffset": 1,
      "status": 410,
      "title": "the offset is no longer kept: bootstrap again",
      "type": "urn:catalog-bridge:problem:offset-expired"
    }
    "#);
    let other = "/events?offset=2&logId=00000000-0000-0000-0000-000000000007";
    insta::assert_json_snapshot!(server.get(other).await.body, @r#"
    {
      "bootstrap": "/api/catalog/entities",
      "detail": "the log's id is now 11112222-3333-4444-5555-666677778888: read /entities and follow from its lastEventOffset",
      "field": "logId",
      "headOffset": 3,
      "logId": "11112222-3333-4444-5555-666677778888",
      "oldestOffset": 1,
      "status": 409,
      "title": "the log has another id: bootstrap again",
      "type": "urn:catalog-bridge:problem:log-changed"
    }
    "#);
    insta::assert_json_snapshot!(server.get("/events?ofset=9").await.body, @r#"
    {
      "detail": "there is no parameter \"ofset\" here; did you mean offset?",
      "field": "ofset",
      "nearest": "offset",
      "status": 400,
      "title": "there is no such query parameter",
      "type": "urn:catalog-bridge:problem:unknown-parameter"
    }
    "#);
    server.stop().await;
}

#[tokio::test]
async fn an_unreachable_store_is_503_and_tells_no_secrets() {
    let (server, store) = Server::start().await;
    store.is_away.store(true, Ordering::Relaxed);

    let reply = server.get("/entities").await;
    check(&Answer { body: with_field(&reply.body), ..reply }, 503, "store-unavailable", "none");
    let ready = answer(server.client.get(format!("{}/readyz", server.root))).await;
    assert_eq!(ready.status, 503);
    assert!(!ready.body.to_string().contains("secret"));
    let alive = answer(server.client.get(format!("{}/healthz", server.root))).await;
    assert_eq!(alive.status, 200, "its own progress only");
    let status = answer(server.client.get(format!("{}/status", server.root))).await.ok();
    assert_eq!(status["log"]["state"], "away");
    server.stop().await;
}

fn with_field(body: &Value) -> Value {
    let mut body = body.clone();
    body["field"] = "none".into();
    body
}

#[tokio::test]
async fn an_ingest_is_answered_and_a_repeated_one_appends_nothing() {
    let (server, _) = Server::start().await;
    let changes = json!([
        { "upsert": component("a", "o") },
        { "upsert": component("a", "o") },
        { "remove": "component:default/none" },
    ]);

    let first = answer(server.ingest(&changes).header("idempotency-key", "k1")).await.ok();
    let again = answer(server.ingest(&changes).header("idempotency-key", "k1")).await;
    let other = answer(server.ingest(&json!([])).header("idempotency-key", "k1")).await;

    assert_eq!(first, json!({ "appended": 1, "unchanged": 2, "lastEventOffset": 1 }));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.ok(), first);
    check(&other, 422, "idempotency-mismatch", "Idempotency-Key");
    server.stop().await;
}

/// Each refused request is a clear answer, and nothing of it is appended.
#[tokio::test]
async fn bad_changes_are_refused_whole() {
    let (server, _) = Server::start().await;
    let good = json!({ "upsert": component("good", "o") });
    let url = format!("{}/sources/push/changes", server.base);
    let send = |body: Vec<u8>| server.client.post(&url).header("content-type", "application/json").body(body);
    let gzip = |body: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body).expect("in memory");
        encoder.finish().expect("in memory")
    };

    let reply = answer(server.ingest(&json!([good, { "upsert": { "kind": "A" } }]))).await;
    check(&reply, 422, "invalid-change", "changes[1].upsert");
    assert_eq!(reply.body["index"], 1);
    check(&answer(server.ingest(&json!([good, { "remove": "x" }]))).await, 422, "invalid-change", "changes[1].remove");
    check(&answer(send(b"{".to_vec())).await, 400, "invalid-body", "body");
    check(&answer(send(b"{}".to_vec())).await, 400, "invalid-body", "changes");
    check(&answer(send(b"\xff".to_vec())).await, 400, "invalid-body", "body");
    let many = json!({ "changes": vec![json!({ "remove": "a:b/c" }); 10_001] }).to_string();
    check(&answer(send(many.into_bytes())).await, 413, "content-too-large", "changes");
    let bomb = format!(r#"{{"changes":[{{"upsert":{}{}}}]}}"#, r#"{"a":"#.repeat(200_000), "}".repeat(200_000));
    let bomb = bomb.replace(r#":}"#, r#":1}"#);
    check(&answer(send(bomb.into_bytes())).await, 422, "invalid-change", "changes[0].upsert");
    let large = vec![b' '; 100 * 1024 * 1024];
    let packed = gzip(&large);
    check(&answer(send(packed).header("content-encoding", "gzip")).await, 413, "content-too-large", "body");
    let whole = gzip(json!({ "changes": [good] }).to_string().as_bytes());
    let truncated = whole[..whole.len() - 9].to_vec();
    check(&answer(send(truncated).header("content-encoding", "gzip")).await, 400, "invalid-body", "body");
    check(
        &answer(send(b"x".to_vec()).header("content-encoding", "br")).await,
        415,
        "unsupported-media-type",
        "Content-Encoding",
    );
    check(
        &answer(server.client.post(&url).header("content-type", "text/plain").body("{}")).await,
        415,
        "unsupported-media-type",
        "Content-Type",
    );
    let unknown = server.client.post(format!("{}/sources/none/changes", server.base)).json(&json!({ "changes": [] }));
    check(&answer(unknown).await, 404, "source-not-found", "source");
    check(&answer(server.client.post(format!("{url}?x=1"))).await, 400, "unknown-parameter", "x");

    assert_eq!(server.get("/events/head").await.ok()["headOffset"], 0, "nothing was appended");
    let whole = answer(send(whole).header("content-encoding", "gzip")).await.ok();
    assert_eq!(whole["appended"], 1, "and what is good is");
    let other = server.client.post(format!("{}/sources/other/changes", server.base));
    check(&answer(other.json(&json!({ "changes": [good] }))).await, 409, "ref-owned", "changes[0]");
    server.stop().await;
}

/// A body of 100 MB is answered, whether its client looks at answers while it writes or not.
#[tokio::test]
async fn a_very_large_body_is_answered() {
    let (server, _) = Server::start().await;
    let url = format!("{}/sources/push/changes", server.base);
    let body = vec![b' '; 100_000_000];

    let declared = server.client.post(&url).header("content-type", "application/json").body(body.clone());
    check(&answer(declared).await, 413, "content-too-large", "body");
    let chunks = body.chunks(1 << 20).map(|chunk| std::io::Result::Ok(chunk.to_vec())).collect::<Vec<_>>();
    let streamed = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let undeclared = server.client.post(&url).header("content-type", "application/json").body(streamed);
    check(&answer(undeclared).await, 413, "content-too-large", "body");
    server.stop().await;
}

/// Who asks before it writes, or writes nothing, is told by the length alone.
#[tokio::test]
async fn a_declared_length_that_is_too_large_is_enough() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (server, _) = Server::start().await;
    for expect in ["", "expect: 100-continue\r\n"] {
        let mut stream =
            tokio::net::TcpStream::connect(server.root.trim_start_matches("http://")).await.expect("connected");
        let request = format!(
            "POST /api/catalog/sources/push/changes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{expect}\
             content-length: 100000000\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");

        let mut reply = vec![0; 2_000];
        let count = stream.read(&mut reply).await.expect("a reply");

        let reply = String::from_utf8_lossy(&reply[..count]).into_owned();
        assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    }
    server.stop().await;
}

/// What a client that went away left behind is still in memory until it is appended, so it still counts.
#[tokio::test]
async fn an_abandoned_ingest_keeps_its_room_until_it_is_appended() {
    let mut narrow = settings();
    narrow.limits.ingests_bytes_max = 0;
    narrow.limits.queue_timeout = std::time::Duration::from_millis(300);
    let (server, store) = Server::with(narrow).await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(br#"{"changes":[]}"#).expect("packed");
    let packed = encoder.finish().expect("packed");
    // Packed, a request may need all the room that there is for one.
    let send = || {
        let request = server.client.post(format!("{}/sources/push/changes", server.base)).body(packed.clone());
        request.header("content-type", "application/json").header("content-encoding", "gzip")
    };
    store.is_slow.store(true, Ordering::Relaxed);

    let abandoned = send().timeout(std::time::Duration::from_secs(3)).send().await;
    assert!(abandoned.is_err_and(|error| error.is_timeout()));
    let next = send().timeout(std::time::Duration::from_secs(20)).send().await.expect("an answer, though a refusal");
    assert_eq!(next.status(), 503);

    store.is_slow.store(false, Ordering::Relaxed);
    for _ in 0..300 {
        if send().send().await.expect("an answer").status() == 200 {
            return server.stop().await;
        }
    }
    panic!("the room was never given back");
}
