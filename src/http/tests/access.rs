use catalog_bridge_api::Secret;
use serde_json::json;

use super::harness::{Answer, Server, answer, component, settings};
use crate::filter::Filter;
use crate::http::{Auth, Scope, Settings, Token};

fn token(name: &str, scopes: &[Scope], filter: Option<&str>) -> Token {
    Token {
        name: name.to_owned(),
        secret: Secret::new(format!("{name}-secret")),
        scopes: scopes.iter().copied().collect(),
        filter: filter.map(|text| Filter::parse(&[text.to_owned()]).expect("a filter")),
    }
}

fn guarded() -> Settings {
    let mut settings = settings();
    settings.auth = Auth::Tokens(vec![
        token("reader", &[Scope::Read], None),
        token("writer", &[Scope::Ingest], None),
        token("operator", &[Scope::Admin, Scope::Read], None),
        token("team-a", &[Scope::Read, Scope::Ingest, Scope::Admin], Some("spec.owner=team-a")),
    ]);
    settings
}

async fn put(server: &Server, name: &str, owner: &str) {
    let changes = json!([{ "upsert": component(name, owner) }]);
    answer(server.ingest(&changes).bearer_auth("writer-secret")).await.ok();
}

#[track_caller]
fn check(reply: &Answer, status: u16, problem: &str) {
    assert_eq!((reply.status, reply.problem()), (status, problem), "{}", reply.body);
}

#[tokio::test]
async fn tokens_open_what_their_scopes_say() {
    let (server, _) = Server::with(guarded()).await;
    let ingest = || server.ingest(&json!([]));
    let pause = || server.client.post(format!("{}/sinks/audit/pause", server.admin));

    let nobody = server.get("/events?wait=0").await;
    check(&nobody, 401, "unauthenticated");
    assert_eq!(nobody.header("www-authenticate"), "Bearer realm=\"catalog-bridge\"");
    check(&server.get_as("wrong", "/events?wait=0").await, 401, "unauthenticated");
    assert_eq!(server.get_as("reader-secret", "/events?wait=0").await.status, 200);
    check(&server.get_as("writer-secret", "/events?wait=0").await, 403, "insufficient-scope");
    check(&answer(ingest()).await, 401, "unauthenticated");
    check(&answer(ingest().bearer_auth("reader-secret")).await, 403, "insufficient-scope");
    assert_eq!(answer(ingest().bearer_auth("writer-secret")).await.status, 200);
    check(&answer(pause()).await, 401, "unauthenticated");
    check(&answer(pause().bearer_auth("reader-secret")).await, 403, "insufficient-scope");
    assert_eq!(answer(pause().bearer_auth("operator-secret")).await.status, 200);
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(answer(server.client.get(format!("{}{path}", server.root))).await.status, 200, "{path}");
    }
    check(&answer(server.client.get(format!("{}/status", server.root))).await, 401, "unauthenticated");
    server.stop().await;
}

/// A token with a filter sees its view on every route, and nothing that tells of what lies outside.
#[tokio::test]
async fn a_bound_token_sees_only_its_view() {
    let (server, _) = Server::with(guarded()).await;
    put(&server, "mine", "team-a").await;
    put(&server, "theirs", "team-b").await;
    put(&server, "moved", "team-a").await;
    put(&server, "moved", "team-b").await;
    let get = async |path: &str| server.get_as("team-a-secret", path).await;

    let events = get("/events?offset=0").await.ok();
    let told: Vec<(u64, &str)> = events["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| (event["offset"].as_u64().expect("a number"), event["type"].as_str().expect("a type")))
        .collect();
    assert_eq!(told, [(1, "added"), (3, "added"), (4, "removed")]);
    assert!(!events.to_string().contains("team-b"));
    let walk = get("/entities").await.ok();
    assert_eq!(walk["items"], json!([component("mine", "team-a")]));
    assert_eq!(get("/entities?filter=spec.owner=team-b").await.ok()["items"], json!([]));
    assert_eq!(
        get("/events?offset=0&filter=kind=component&type=added").await.ok()["events"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(get("/entities/by-name/component/default/mine").await.status, 200);
    check(&get("/entities/by-name/component/default/theirs").await, 404, "not-found");
    check(&get("/entities/by-name/component/default/moved").await, 404, "not-found");
    check(&get("/entities/by-name/component/default/theirs/history").await, 404, "not-found");
    let history = get("/entities/by-name/component/default/moved/history").await.ok();
    assert_eq!(history["events"].as_array().map(Vec::len), Some(2));
    assert!(!history.to_string().contains("team-b"));
    assert_eq!(get("/events/1").await.status, 200);
    check(&get("/events/2").await, 404, "not-found");
    assert_eq!(get("/events/4").await.ok()["reason"], "left-filter");
    server.stop().await;
}

#[tokio::test]
async fn a_bound_token_only_reads() {
    let (server, _) = Server::with(guarded()).await;

    let changes = json!([{ "upsert": component("a", "team-a") }]);
    check(&answer(server.ingest(&changes).bearer_auth("team-a-secret")).await, 403, "insufficient-scope");
    let pause = server.client.post(format!("{}/sinks/audit/pause", server.admin)).bearer_auth("team-a-secret");
    check(&answer(pause).await, 403, "insufficient-scope");
    let status = server.client.get(format!("{}/status", server.root)).bearer_auth("team-a-secret");
    check(&answer(status).await, 403, "insufficient-scope");
    server.stop().await;
}

/// An event that retention took is not told to a bound token: whether it would have seen it is not known.
#[tokio::test]
async fn an_expired_event_is_not_found_for_a_bound_token() {
    let (server, store) = Server::with(guarded()).await;
    put(&server, "theirs", "team-b").await;
    put(&server, "theirs", "team-c").await;
    store.forget(2);

    check(&server.get_as("reader-secret", "/events/1").await, 410, "event-expired");
    check(&server.get_as("team-a-secret", "/events/1").await, 404, "not-found");
    check(&server.get_as("team-a-secret", "/events/1?entityRef=component:default/theirs").await, 404, "not-found");
    server.stop().await;
}

/// Retention leaves an entity's last event without the state before it, which could have decided: a doubt opens nothing.
#[tokio::test]
async fn compacted_events_of_others_are_not_found_for_a_bound_token() {
    let (server, store) = Server::with(guarded()).await;
    put(&server, "theirs", "team-b").await;
    put(&server, "theirs", "team-c").await;
    put(&server, "gone", "team-b").await;
    let removal = json!([{ "remove": "component:default/gone" }]);
    answer(server.ingest(&removal).bearer_auth("writer-secret")).await.ok();
    put(&server, "mine", "team-a").await;
    store.forget(5);
    let get = async |path: &str| server.get_as("team-a-secret", path).await;

    assert_eq!(server.get_as("reader-secret", "/events/2").await.status, 200);
    for path in ["/events/2", "/events/4", "/events/1?entityRef=component:default/theirs"] {
        check(&get(path).await, 404, "not-found");
    }
    for name in ["theirs", "gone", "nobody"] {
        check(&get(&format!("/entities/by-name/component/default/{name}/history")).await, 404, "not-found");
        let of_other_log =
            format!("/events/1?entityRef=component:default/{name}&logId=00000000-0000-0000-0000-000000000007");
        check(&get(&of_other_log).await, 409, "log-changed");
    }
    assert_eq!(get("/events/5").await.ok()["type"], "added");
    server.stop().await;
}

#[tokio::test]
async fn one_token_cannot_take_all_waiters() {
    let mut narrow = guarded();
    narrow.limits.waiters_per_token_max = 0;
    let (server, _) = Server::with(narrow).await;

    let refused = server.get_as("reader-secret", "/events?offset=0").await;

    check(&refused, 429, "too-many-requests");
    assert_eq!(refused.header("retry-after"), "5");
    server.stop().await;
}

#[tokio::test]
async fn a_rotated_secret_file_is_read_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("token");
    std::fs::write(&path, "first\n").expect("written");
    let mut rotating = settings();
    let mut known = token("search", &[Scope::Read], None);
    known.secret = Secret::new(format!("file:{}", path.display()));
    rotating.auth = Auth::Tokens(vec![known]);
    let (server, _) = Server::with(rotating).await;
    assert_eq!(server.get_as("first", "/events?wait=0").await.status, 200);

    std::fs::write(&path, "second\n").expect("written");

    for _ in 0..300 {
        if server.get_as("second", "/events?wait=0").await.status == 200 {
            check(&server.get_as("first", "/events?wait=0").await, 401, "unauthenticated");
            server.stop().await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the new secret was never taken");
}

/// Without tokens, loopback is the only fence, and web pages in a browser of this machine are inside it.
#[tokio::test]
async fn requests_of_other_sites_are_refused() {
    let (server, _) = Server::start().await;
    let pause = || server.client.post(format!("{}/sinks/audit/pause", server.admin));

    check(&answer(pause().header("origin", "https://evil.example")).await, 403, "cross-origin");
    check(&answer(server.ingest(&json!([])).header("origin", "null")).await, 403, "cross-origin");
    assert_eq!(answer(pause().header("origin", server.admin.clone())).await.status, 200);
    server.stop().await;
}

/// A page whose name was made to lead here is of our own origin to its browser; only the name tells.
#[tokio::test]
async fn a_loopback_listener_without_tokens_answers_to_its_own_names() {
    let mut public = settings();
    public.public_url = Some("https://catalog.example.com/feed".to_owned());
    let (server, _) = Server::with(public).await;
    let read = |host: &str| server.client.get(format!("{}/events?wait=0", server.base)).header("host", host);
    let pause = |host: &str| {
        let request = server.client.post(format!("{}/sinks/audit/pause", server.admin));
        request.header("host", host).header("origin", format!("http://{host}"))
    };

    for host in ["localhost", "LocalHost:1", "127.0.0.1:8219", "127.1.2.3", "[::1]:8219", "catalog.example.com:8443"] {
        assert_eq!(answer(read(host)).await.status, 200, "{host}");
        assert_eq!(answer(pause(host)).await.status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8219", "localhost.evil.example", "192.0.2.1", "a@localhost.evil.example"]
    {
        check(&answer(read(host)).await, 403, "cross-origin");
        check(&answer(pause(host)).await, 403, "cross-origin");
    }
    server.stop().await;

    let (guarded, _) = Server::with(guarded()).await;
    let read = guarded.client.get(format!("{}/events?wait=0", guarded.base)).header("host", "behind.example");
    assert_eq!(answer(read.bearer_auth("reader-secret")).await.status, 200, "a token is fence enough");
    guarded.stop().await;

    let mut open = settings();
    open.listen = "0.0.0.0:0".to_owned();
    let (open, _) = Server::with(open).await;
    let read = open.client.get(format!("{}/events?wait=0", open.base)).header("host", "bridge.example");
    assert_eq!(answer(read).await.status, 200, "beyond loopback names are the network's");
    open.stop().await;
}
