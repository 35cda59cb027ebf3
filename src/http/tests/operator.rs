use catalog_bridge_api::Offset;
use serde_json::json;

use super::harness::{Answer, Server, answer};
use crate::store::{ConsumerKind, SinkCommand};
use crate::telemetry::{ConsumerState, ConsumerStatus};

#[track_caller]
fn check(reply: &Answer, status: u16, problem: &str) {
    assert_eq!((reply.status, reply.problem()), (status, problem), "{}", reply.body);
}

#[tokio::test]
async fn commands_are_stored_and_the_daemon_is_told() {
    let (server, store) = Server::start().await;
    server.put("a", "o").await;

    for path in [
        "pause",
        "resume",
        "skip?offset=4",
        "rewind?to=snapshot",
        "rewind?to=3",
        "rewind?to=latest",
        "rewind?to=earliest",
    ] {
        assert_eq!(server.command(&format!("/sinks/audit/{path}")).await.ok()["name"], "audit", "{path}");
    }

    let commands: Vec<SinkCommand> =
        store.commands.lock().expect("no panic").iter().map(|(_, command)| command.clone()).collect();
    let expected = [
        SinkCommand::Pause,
        SinkCommand::Resume,
        SinkCommand::Skip(Offset::new(4)),
        SinkCommand::RewindToSnapshot,
        SinkCommand::RewindTo(Offset::new(3)),
        SinkCommand::RewindTo(Offset::new(1)),
        SinkCommand::RewindTo(Offset::ZERO),
    ];
    assert_eq!(commands, expected);
    assert_eq!(server.control.calls(), ["commanded"; 7]);
    server.stop().await;
}

#[tokio::test]
async fn bad_commands_are_refused() {
    let (server, store) = Server::start().await;

    check(&server.command("/sinks/none/pause").await, 404, "not-found");
    check(&server.command("/sinks/audit/skip").await, 400, "invalid-parameter");
    check(&server.command("/sinks/audit/skip?offset=x").await, 400, "invalid-parameter");
    check(&server.command("/sinks/audit/rewind").await, 400, "invalid-parameter");
    check(&server.command("/sinks/audit/rewind?to=yesterday").await, 400, "invalid-parameter");
    check(&server.command("/sinks/audit/pause?now=1").await, 400, "unknown-parameter");
    check(&server.command("/redact").await, 400, "invalid-parameter");
    check(&server.command("/redact?entityRef=x").await, 400, "invalid-parameter");
    check(&server.command("/sinks/audit/stop").await, 404, "not-found");
    check(&answer(server.client.get(format!("{}/sinks/audit/pause", server.admin))).await, 405, "method-not-allowed");
    assert!(store.commands.lock().expect("no panic").is_empty());
    server.stop().await;
}

/// What only an operator may do is not on the readers' listener, and the other way round.
#[tokio::test]
async fn the_listeners_are_separate() {
    let (server, _) = Server::start().await;

    for prefix in [&server.root, &server.base] {
        check(&answer(server.client.post(format!("{prefix}/sinks/audit/pause"))).await, 404, "not-found");
        check(&answer(server.client.post(format!("{prefix}/log/new-id"))).await, 404, "not-found");
    }
    check(&answer(server.client.get(format!("{}/api/catalog/events", server.admin))).await, 404, "not-found");
    server.stop().await;
}

#[tokio::test]
async fn the_daemon_is_asked_for_what_only_it_can_do() {
    let (server, _) = Server::start().await;
    let preview = |path: &str| answer(server.client.get(format!("{}{path}", server.admin)));

    assert_eq!(preview("/sinks/audit/preview?limit=5").await.ok(), json!({ "messages": [] }));
    check(&preview("/sinks/none/preview").await, 404, "not-found");
    check(&preview("/sinks/NONE/preview").await, 404, "not-found");
    check(&preview("/sinks/audit/preview?limit=0").await, 400, "invalid-parameter");
    assert_eq!(server.command("/sources/backstage/reconcile").await.ok(), json!({ "begun": true }));
    check(&server.command("/sources/backstage/reconcile?confirm=true").await, 409, "command-refused");
    check(&server.command("/sources/backstage/reconcile?confirm=maybe").await, 400, "invalid-parameter");
    assert_eq!(
        server.control.calls(),
        ["preview audit 5", "preview none 10", "reconcile backstage false", "reconcile backstage true"]
    );
    server.stop().await;
}

#[tokio::test]
async fn a_new_log_id_reaches_readers() {
    let (server, _) = Server::start().await;
    server.put("a", "o").await;
    let before = server.get("/events?offset=0").await.ok();

    let new = server.command("/log/new-id?reason=restored").await.ok();

    let log_id = before["logId"].as_str().expect("an id");
    let reply = server.get(&format!("/events?offset=1&logId={log_id}")).await;
    check(&reply, 409, "log-changed");
    assert_eq!(reply.body["logId"], new["logId"]);
    server.stop().await;
}

/// A sink of ours shows what its worker here says; one that another replica owns shows what that one published, and where
/// its row says that it stands.
#[tokio::test]
async fn status_shows_every_sink_from_where_it_runs() {
    let (server, _) = Server::start().await;
    let status = |state| ConsumerStatus {
        state,
        protocol: "file".to_owned(),
        checkpoint: None,
        lag_events: None,
        lag_seconds: None,
        detail: serde_json::Value::Null,
        help: Vec::new(),
    };
    server.board.publish(ConsumerKind::Sink, "audit", status(ConsumerState::Standby { owner: "other".to_owned() }));
    server.board.publish(ConsumerKind::Sink, "ours", status(ConsumerState::Paused));
    server.board.publish(ConsumerKind::Source, "backstage", status(ConsumerState::Running));

    let shown = answer(server.client.get(format!("{}/status", server.root))).await.ok();
    let same = answer(server.client.get(format!("{}/status", server.admin))).await.ok();

    assert_eq!(
        (&shown["sinks"]["audit"]["state"], &shown["sinks"]["audit"]["owner"]),
        (&json!("running"), &json!("other"))
    );
    // What was published is older than the stored checkpoint.
    assert_eq!((&shown["sinks"]["audit"]["checkpoint"], &shown["sinks"]["audit"]["lagEvents"]), (&json!(3), &json!(0)));
    assert_eq!(shown["sinks"]["ours"]["state"], "paused");
    assert_eq!(shown["sources"]["backstage"]["state"], "running");
    assert_eq!((&shown["log"]["state"], &shown["log"]["head"]), (&json!("ok"), &json!(0)));
    assert_eq!(shown, same);
    server.stop().await;
}
