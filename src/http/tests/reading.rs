use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::harness::{Server, answer, component, settings};
use crate::http::BasePath;

fn offsets(events: &Value) -> Vec<u64> {
    events["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| event["offset"].as_u64().expect("a number"))
        .collect()
}

/// The RFC's shape of a reply (Backstage issue 8219): `lastEventOffset` and `events`, each with offset, type and entityRef.
#[tokio::test]
async fn events_have_the_fields_of_the_rfc() {
    let (server, _) = Server::start().await;
    server.put("a", "team-a").await;
    server.put("a", "team-b").await;
    server.remove("a").await;

    let reply = server.get("/events?offset=0").await;

    assert_eq!(reply.header("content-type"), "application/json");
    let mut body = reply.ok();
    body["events"][0]["entity"] = "…".into();
    body["events"][1]["entity"] = "…".into();
    insta::assert_json_snapshot!(body, @r#"
    {
      "events": [
        {
          "cause": "ingest",
          "entity": "…",
          "entityRef": "component:default/a",
          "occurredAt": "1970-01-01T00:00:00Z",
          "offset": 1,
          "recordedAt": "1970-01-01T00:00:00Z",
          "type": "added"
        },
        {
          "cause": "ingest",
          "entity": "…",
          "entityRef": "component:default/a",
          "occurredAt": "1970-01-01T00:00:00Z",
          "offset": 2,
          "previousOffset": 1,
          "recordedAt": "1970-01-01T00:00:00Z",
          "type": "updated"
        },
        {
          "cause": "ingest",
          "entityRef": "component:default/a",
          "occurredAt": "1970-01-01T00:00:00Z",
          "offset": 3,
          "previousOffset": 2,
          "recordedAt": "1970-01-01T00:00:00Z",
          "type": "removed"
        }
      ],
      "headOffset": 3,
      "lastEventOffset": 3,
      "logId": "11112222-3333-4444-5555-666677778888",
      "oldestOffset": 0
    }
    "#);
    server.stop().await;
}

/// The RFC's bootstrap: `items`, `pageInfo` and `lastEventOffset`.
#[tokio::test]
async fn entities_have_the_fields_of_the_rfc() {
    let (server, _) = Server::start().await;
    for name in ["b", "a", "c"] {
        server.put(name, "team-a").await;
    }
    server.remove("c").await;

    let body = server.get("/entities").await.ok();

    assert_eq!(body["items"], json!([component("a", "team-a"), component("b", "team-a")]));
    assert_eq!((&body["lastEventOffset"], &body["pageInfo"]), (&json!(4), &json!({})));
    server.stop().await;
}

/// The RFC's gaps: a filter leaves events out, and `lastEventOffset` goes past them.
#[tokio::test]
async fn last_event_offset_passes_what_the_filter_leaves_out() {
    let (server, _) = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.put(name, if name == "b" { "team-b" } else { "team-a" }).await;
    }

    let body = server.get("/events?offset=0&filter=spec.owner=team-b&wait=0").await.ok();
    let none = server.get("/events?offset=2&filter=spec.owner=team-b&wait=0").await.ok();

    assert_eq!((offsets(&body), &body["lastEventOffset"]), (vec![2], &json!(5)));
    assert_eq!((offsets(&none), &none["lastEventOffset"]), (vec![], &json!(5)));
    server.stop().await;
}

#[tokio::test]
async fn leaving_a_filter_is_a_removal_with_its_reason() {
    let (server, _) = Server::start().await;
    server.put("a", "team-a").await;
    server.put("a", "team-b").await;

    let body = server.get("/events?offset=1&filter=spec.owner=team-a").await.ok();

    let event = &body["events"][0];
    assert_eq!((&event["type"], &event["reason"]), (&json!("removed"), &json!("left-filter")));
    assert_eq!(event.get("entity"), None);
    server.stop().await;
}

#[tokio::test]
async fn pages_are_cut_by_limit_and_by_bytes_and_hold_at_least_one_event() {
    let (server, _) = Server::start().await;
    let large = "x".repeat(5 * 1024 * 1024);
    let mut changes = vec![json!({ "upsert": component("a", "o") }), json!({ "upsert": component("b", "o") })];
    let mut entity = component("large", "o");
    entity["spec"]["definition"] = large.clone().into();
    changes.push(json!({ "upsert": entity }));
    changes.push(json!({ "upsert": component("z", "o") }));
    answer(server.ingest(&changes.into())).await.ok();

    assert_eq!(offsets(&server.get("/events?offset=0&limit=1").await.ok()), [1]);
    assert_eq!(offsets(&server.get("/events?offset=0").await.ok()), [1, 2]);
    let page = server.get("/events?offset=2").await.ok();
    assert_eq!(offsets(&page), [3]);
    assert_eq!(page["events"][0]["entity"]["spec"]["definition"].as_str().map(str::len), Some(large.len()));
    assert_eq!(offsets(&server.get("/events?offset=3").await.ok()), [4]);
    server.stop().await;
}

#[tokio::test]
async fn without_an_offset_reading_begins_at_the_oldest() {
    let (server, store) = Server::start().await;
    for owner in ["1", "2", "3", "4"] {
        server.put("a", owner).await;
    }
    store.forget(2);

    assert_eq!(offsets(&server.get("/events").await.ok()), [3, 4]);
    assert_eq!(server.get("/events?offset=latest&wait=0").await.ok()["lastEventOffset"], 4);
    assert_eq!(server.get("/events?offset=1").await.status, 410);
    server.stop().await;
}

#[tokio::test]
async fn types_and_changes_select_events() {
    let (server, _) = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    server.remove("a").await;

    assert_eq!(offsets(&server.get("/events?offset=0&type=added,removed").await.ok()), [1, 3]);
    assert_eq!(offsets(&server.get("/events?offset=0&type=updated").await.ok()), [2]);
    server.stop().await;
}

/// Guards P4: the pages of a walk are the state at its offset, whatever is written between them.
#[tokio::test]
async fn a_walk_is_exact_while_the_log_grows() {
    let (server, _) = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.put(name, "before").await;
    }
    let first = server.get("/entities?limit=2").await.ok();
    let mut cursor = first["pageInfo"]["nextCursor"].as_str().map(str::to_owned);
    let mut items = first["items"].as_array().expect("items").clone();
    while let Some(next) = cursor {
        server.put("c", "after").await;
        server.remove("d").await;
        server.put("ab", "after").await;
        let page = server.get(&format!("/entities?limit=2&cursor={next}")).await.ok();
        assert_eq!(page["lastEventOffset"], first["lastEventOffset"]);
        items.extend(page["items"].as_array().expect("items").clone());
        cursor = page["pageInfo"]["nextCursor"].as_str().map(str::to_owned);
    }

    let expected: Vec<Value> = ["a", "b", "c", "d", "e"].iter().map(|name| component(name, "before")).collect();
    assert_eq!(items, expected);
    server.stop().await;
}

#[tokio::test]
async fn a_cursor_is_refused_when_its_state_is_gone_or_its_filter_differs() {
    let (server, store) = Server::start().await;
    for name in ["a", "b", "c"] {
        server.put(name, "o").await;
    }
    let first = server.get("/entities?limit=1&filter=kind=component").await.ok();
    let cursor = first["pageInfo"]["nextCursor"].as_str().expect("more").to_owned();
    let next = format!("/entities?limit=1&filter=kind=component&cursor={cursor}");

    assert_eq!(server.get(&next).await.status, 200);
    let other = server.get(&format!("/entities?filter=kind=api&cursor={cursor}")).await;
    assert_eq!((other.status, other.problem()), (400, "invalid-parameter"));
    server.put("d", "o").await;
    store.forget(4);
    let expired = server.get(&next).await;
    assert_eq!((expired.status, expired.problem()), (410, "offset-expired"));
    assert_eq!(expired.body["bootstrap"], "/api/catalog/entities?filter=kind%3Dcomponent");
    store.change_log_id(7);
    assert_eq!(server.get(&next).await.problem(), "log-changed");
    server.stop().await;
}

#[tokio::test]
async fn one_entity_and_its_history_are_found_by_name() {
    let (server, _) = Server::start().await;
    for owner in ["1", "2", "3"] {
        server.put("a", owner).await;
    }
    let by_name = "/entities/by-name/Component/DEFAULT/A";

    let entity = server.get(by_name).await;
    assert_eq!(entity.header("catalog-bridge-offset"), "3");
    assert_eq!(entity.ok(), component("a", "3"));
    let newest = server.get(&format!("{by_name}/history?limit=2")).await.ok();
    assert_eq!((offsets(&newest), &newest["nextBefore"]), (vec![3, 2], &json!(2)));
    let rest = server.get(&format!("{by_name}/history?limit=2&before=2")).await.ok();
    assert_eq!((offsets(&rest), rest.get("nextBefore")), (vec![1], None));
    server.remove("a").await;
    assert_eq!(server.get(by_name).await.problem(), "not-found");
    assert_eq!(offsets(&server.get(&format!("{by_name}/history")).await.ok()), [4, 3, 2, 1]);
    assert_eq!(server.get("/entities/by-name/component/default/none/history").await.status, 404);
    server.stop().await;
}

#[tokio::test]
async fn one_event_is_found_and_an_expired_one_answers_with_its_entity() {
    let (server, store) = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;

    assert_eq!(server.get("/events/2").await.ok()["previousOffset"], 1);
    assert_eq!(server.get("/events/3").await.problem(), "not-found");
    assert_eq!(server.get("/events/0").await.problem(), "not-found");
    store.forget(2);
    assert_eq!(server.get("/events/1").await.problem(), "event-expired");
    let stand_in = server.get("/events/1?entityRef=component:default/a").await.ok();
    assert_eq!((&stand_in["offset"], &stand_in["expiredOffset"]), (&json!(2), &json!(1)));
    let other_log = "logId=00000000-0000-0000-0000-000000000007";
    assert_eq!(server.get(&format!("/events/2?{other_log}")).await.problem(), "log-changed");
    let stand_in = server.get(&format!("/events/2?{other_log}&entityRef=component:default/a")).await.ok();
    assert_eq!((&stand_in["offset"], &stand_in["expiredOffset"]), (&json!(2), &json!(2)));
    server.stop().await;
}

#[tokio::test]
async fn a_redacted_entity_is_told_without_its_body() {
    let (server, _) = Server::start().await;
    server.put("a", "secret").await;

    assert_eq!(server.command("/redact?entityRef=component:default/a").await.ok()["redactedEvents"], 1);

    let shown = server.get("/entities").await.ok();
    assert_eq!(shown["items"][0]["metadata"]["annotations"]["catalog-bridge/redacted"], "true");
    assert!(!server.get("/events?offset=0").await.ok().to_string().contains("secret"));
    assert_eq!(server.get("/entities/by-name/component/default/a").await.ok()["metadata"]["name"], "a");
    server.stop().await;
}

#[tokio::test]
async fn paths_and_links_follow_the_base_path() {
    let mut at_root = settings();
    at_root.base_path = BasePath::parse("/feeds/one/").expect("a path");
    at_root.public_url = Some("https://catalog.example.com/".to_owned());
    let (server, store) = Server::with(at_root).await;
    server.put("a", "1").await;
    store.forget(1);

    let expired = server.get("/events?offset=0").await;

    assert_eq!(expired.body["bootstrap"], "https://catalog.example.com/feeds/one/entities");
    assert_eq!(answer(server.client.get(format!("{}/api/catalog/events", server.root))).await.problem(), "not-found");
    assert!(
        answer(server.client.get(format!("{}/openapi.json", server.root))).await.ok()["paths"]
            .get("/feeds/one/events")
            .is_some()
    );
    server.stop().await;
}

/// The document and the routes are one list; this asks each documented path and gets an answer of a handler.
#[tokio::test]
async fn every_route_is_in_the_document_and_answers() {
    let (server, _) = Server::start().await;
    server.put("a", "o").await;
    let document = answer(server.client.get(format!("{}/openapi.json", server.root))).await.ok();
    let paths = document["paths"].as_object().expect("paths");
    let told: BTreeSet<&str> = paths.keys().map(String::as_str).collect();

    let expected = [
        "/api/catalog/entities",
        "/api/catalog/entities/by-name/{kind}/{namespace}/{name}",
        "/api/catalog/entities/by-name/{kind}/{namespace}/{name}/history",
        "/api/catalog/events",
        "/api/catalog/events/head",
        "/api/catalog/events/{offset}",
        "/api/catalog/sources/{source}/changes",
        "/healthz",
        "/log/new-id",
        "/metrics",
        "/openapi.json",
        "/readyz",
        "/redact",
        "/sinks/{sink}/pause",
        "/sinks/{sink}/preview",
        "/sinks/{sink}/resume",
        "/sinks/{sink}/rewind",
        "/sinks/{sink}/skip",
        "/sources/{source}/reconcile",
        "/status",
    ];
    assert_eq!(told, expected.into_iter().collect());
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            let is_operator = operation["tags"][0] == "operator";
            let url = format!("{}{path}", if is_operator { &server.admin } else { &server.root });
            let url = url.replace(['{', '}'], "");
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let reply = answer(server.client.request(method, &url)).await;
            assert_ne!(reply.status, 405, "{url}");
            assert!(!reply.body["detail"].to_string().contains("there is nothing at"), "{url}");
        }
    }
    for reference in document.to_string().split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap_or_default();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is told and not there");
    }
    server.stop().await;
}

/// A change of the events' schema that is not additive breaks readers: this is what they were promised.
#[tokio::test]
async fn the_schema_of_events_is_as_published() {
    let document = crate::http::openapi_document(&BasePath::default());
    let event = &document["components"]["schemas"]["Event"];

    let names: Vec<&String> = event["properties"].as_object().expect("an object").keys().collect();
    insta::assert_json_snapshot!(json!({ "properties": names, "required": event["required"] }), @r#"
    {
      "properties": [
        "cause",
        "changed",
        "entity",
        "entityRef",
        "occurredAt",
        "offset",
        "previousOffset",
        "reason",
        "recordedAt",
        "type",
        "uid"
      ],
      "required": [
        "offset",
        "type",
        "entityRef",
        "occurredAt",
        "recordedAt",
        "cause"
      ]
    }
    "#);
}
