//! Bad input gets a clear answer that names the field, and appends nothing.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::{Daemon, Place, cli, upsert};

async fn start(place: &Place) -> Result<Daemon> {
    place
        .start(&format!("log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\n", place.path().display()))
        .await
}

/// Each bad query is a 4xx in problem+json whose text names the parameter.
#[tokio::test(flavor = "multi_thread")]
async fn bad_queries_name_the_parameter() -> Result<()> {
    let place = Place::new()?;
    let daemon = start(&place).await?;
    daemon.ingest("push", &[upsert("a", 1)]).await?;
    let cases = [
        ("/events?offset=-1", 400, "offset"),
        ("/events?offset=1.5", 400, "offset"),
        ("/events?offset=99999999999999999999999", 400, "offset"),
        ("/events?offset=abc", 400, "offset"),
        ("/events?offset=2", 409, "offset"),
        ("/events?offset=0&logId=00000000-0000-4000-8000-000000000000", 409, "log"),
        ("/events?logId=nonsense", 400, "logId"),
        ("/events?limit=0", 400, "limit"),
        ("/events?limit=abc", 400, "limit"),
        ("/events?wait=-3", 400, "wait"),
        ("/events?filter=", 400, "filter"),
        ("/events?filter=%3Dcomponent", 400, "filter"),
        ("/events?ofset=1", 400, "offset"),
        ("/events?type=gone", 400, "type"),
        ("/entities?cursor=nonsense", 400, "cursor"),
        ("/events/0", 404, "0"),
        ("/events/7", 404, "7"),
        ("/entities/by-name/component/default/ghost", 404, "ghost"),
        ("/nowhere", 404, "nowhere"),
    ];
    for (path, expected, word) in cases {
        let reply = daemon.client().get(format!("{}/api/catalog{path}", daemon.http)).send().await?;
        let (status, kind) = (
            reply.status().as_u16(),
            reply.headers().get("content-type").map(|value| value.to_str().unwrap_or_default().to_owned()),
        );
        let body: Value =
            serde_json::from_str(&reply.text().await?).with_context(|| format!("GET {path}: a JSON body"))?;
        ensure!(status == expected, "GET {path}: {status} instead of {expected}: {body}");
        ensure!(kind.as_deref() == Some("application/problem+json"), "GET {path}: {kind:?}");
        ensure!(body["type"].is_string() && body["status"] == expected, "GET {path}: {body}");
        ensure!(
            body["detail"].is_string() && body.to_string().contains(word),
            "GET {path}: the answer names {word}: {body}"
        );
    }
    Ok(())
}

/// Each bad ingest is a 4xx that names what is wrong, and the log's head stays where it was.
#[tokio::test(flavor = "multi_thread")]
async fn bad_ingest_appends_nothing() -> Result<()> {
    let place = Place::new()?;
    let mut daemon = start(&place).await?;
    daemon.ingest("push", &[upsert("a", 1)]).await?;
    let good = upsert("b", 1);
    let many: Vec<Value> = (0..10_001).map(|number| upsert(&format!("many-{number}"), 1)).collect();
    let nested = format!(
        "{{\"changes\":[{{\"upsert\":{{\"kind\":\"Component\",\"metadata\":{{\"name\":\"deep\"}},\"spec\":{}1{}}}}}]}}",
        "{\"a\":".repeat(200_000),
        "}".repeat(200_000)
    );
    let huge = format!(
        "{{\"changes\":[{{\"upsert\":{{\"kind\":\"Component\",\"metadata\":{{\"name\":\"x\"}},\"spec\":\"{}\"}}}}]}}",
        "x".repeat(100_000_000)
    );
    let cases: Vec<(&str, String, &[u16], &str)> = vec![
        ("no JSON", "{".to_owned(), &[400], "EOF"),
        ("no changes", json!({}).to_string(), &[400, 422], "changes"),
        (
            "a non-entity",
            json!({ "changes": [good.clone(), { "upsert": { "metadata": {} } }] }).to_string(),
            &[400, 422],
            "1",
        ),
        ("no object", json!({ "changes": [{ "upsert": 7 }] }).to_string(), &[400, 422], "0"),
        ("an unknown member", json!({ "changes": [{ "upset": {} }] }).to_string(), &[400, 422], "ups"),
        ("a bad ref", json!({ "changes": [good.clone(), { "remove": "nonsense" }] }).to_string(), &[400, 422], "1"),
        ("10,001 changes", json!({ "changes": many }).to_string(), &[413], "10"),
        ("100 MB", huge, &[413], "16"),
        ("200,000 nested objects", nested, &[400, 422], "deep"),
    ];
    for (what, body, expected, word) in cases {
        let url = format!("{}/api/catalog/sources/push/changes", daemon.http);
        let reply = daemon
            .client()
            .post(url)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .with_context(|| format!("{what}: a reply"))?;
        let status = reply.status().as_u16();
        let text = reply.text().await?;
        ensure!(expected.contains(&status), "{what}: {status}: {text}");
        ensure!(text.contains(word), "{what}: the answer names {word}: {text}");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(json!({ "changes": [good] }).to_string().as_bytes())?;
    let whole = gzip.finish()?;
    let truncated = daemon
        .client()
        .post(format!("{}/api/catalog/sources/push/changes", daemon.http))
        .header("content-encoding", "gzip")
        .header("content-type", "application/json")
        .body(whole[..whole.len() / 2].to_vec())
        .send()
        .await?;
    ensure!(truncated.status().as_u16() == 400, "truncated gzip: {}", truncated.status());
    let unknown = daemon
        .client()
        .post(format!("{}/api/catalog/sources/nobody/changes", daemon.http))
        .json(&json!({ "changes": [] }))
        .send()
        .await?;
    ensure!(unknown.status().as_u16() == 404, "an unknown source: {}", unknown.status());

    ensure!(daemon.head().await?.get() == 1, "nothing was half-appended: head {}", daemon.head().await?);
    ensure!(daemon.is_alive(), "the daemon lives");
    Ok(())
}

/// A wrong config ends with 2 and names file, line, key and the nearest known key; no secret is printed.
#[test]
fn wrong_configs_exit_with_2_and_name_the_place() -> Result<()> {
    let place = Place::new()?;
    let cases = [
        ("log: sqlite:///tmp/x.db\nsorces: {}\n", ":2", "sources"),
        ("log: sqlite:///tmp/x.db\nsinks:\n  a: { kafka: { brokers: [x:1], topic: t, tpoic: u } }\n", ":3", "topic"),
        ("log: sqlite:///tmp/x.db\nsinks:\n  a: { file: { path: /tmp/y }, encoding: xml }\n", ":3", "cloudevents"),
        ("log: [\n", ":", "YAML"),
        ("log: mysql://secret-user:secret-word@h/d\n", ":1", "postgres"),
        (
            "log: sqlite:///tmp/x.db\nsources: { b: { backstage-db: { url: \"postgres://u:secret-word@h/d\", capture: magic } } }\n",
            ":2",
            "generations",
        ),
        ("log: sqlite:///tmp/x.db\nhttp: { listen: 0.0.0.0:8219 }\n", ":2", "auth"),
        ("log: sqlite:///tmp/x.db\nlog: sqlite:///tmp/y.db\n", ":2", "log"),
    ];
    for (text, line, word) in cases {
        std::fs::write(place.config(), text)?;
        let output = cli(&["check", "--offline", "--config", place.config().to_str().context("a path")?])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(2), "{text:?}: exit {:?}: {said}", output.status.code());
        ensure!(
            said.contains("catalog-bridge.yaml") && said.contains(line),
            "{text:?}: names file and line {line}: {said}"
        );
        ensure!(said.contains(word), "{text:?}: names {word}: {said}");
        ensure!(!said.contains("secret-word"), "{text:?}: prints a secret: {said}");
    }
    Ok(())
}
