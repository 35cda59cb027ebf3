//! An operator at the command line: exit codes, errors that say what to do, and commands that a running daemon obeys.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, catalog_database, cli, postgres_store, upsert};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn check(arguments: &[&str], code: i32, parts: &[&str]) -> Result<String> {
    let output = cli(arguments)?;
    let text = text(&output);
    ensure!(output.status.code() == Some(code), "{arguments:?}: {:?} instead of {code}:\n{text}", output.status.code());
    for part in parts {
        ensure!(text.contains(part), "{arguments:?} names {part}:\n{text}");
    }
    Ok(text)
}

/// 2 is wrong use or config, 1 is failed; each says what to do.
#[test]
fn exit_codes_tell_wrong_use_from_failure() -> Result<()> {
    let place = Place::new()?;
    let right = place.path().join("right.yaml");
    let log = place.path().join("log.db");
    std::fs::write(
        &right,
        format!(
            "log: sqlite://{}\nhttp: {{ admin: 127.0.0.1:1 }}\nsinks: {{ a: {{ stdout: {{}} }} }}\n",
            log.display()
        ),
    )?;
    let wrong = place.path().join("wrong.yaml");
    std::fs::write(&wrong, "log: sqlite:log.db\nsinks:\n  a:\n    stdout: {}\n    filtre: kind=component\n")?;
    let (right, wrong) = (right.to_string_lossy().into_owned(), wrong.to_string_lossy().into_owned());

    check(&["--version"], 0, &["catalog-bridge"])?;
    check(&["--help"], 0, &["demo", "check", "status"])?;
    check(&["schema"], 0, &["\"$defs\"", "SinkSection"])?;
    check(&["check", "--offline", "--config", &right], 0, &["sink a (stdout): right"])?;
    check(&["check", "--config", &right], 0, &["no log yet"])?;
    ensure!(!log.exists(), "check changes nothing");

    check(&["no-such-command"], 2, &["unrecognized subcommand"])?;
    check(&["run", "--config", "/nowhere/c.yaml"], 2, &["/nowhere/c.yaml", "--config"])?;
    for command in ["run", "check", "status"] {
        check(
            &[command, "--config", &wrong],
            2,
            &[&format!("{wrong}:5: sinks.a.filtre: unknown key; did you mean \"filter\"?")],
        )?;
    }
    check(
        &["sinks", "rewind", "a", "--to", "yesterday", "--config", &right],
        2,
        &["snapshot, earliest, latest or an offset"],
    )?;
    check(&["redact", "website/", "--config", &right], 2, &["kind:namespace/name"])?;

    check(
        &["status", "--config", &right],
        1,
        &["no daemon answers at http://127.0.0.1:1", "catalog-bridge run --config"],
    )?;
    Ok(())
}

async fn start(place: &Place, more: &str) -> Result<Daemon> {
    place
        .start(&format!(
            "log: sqlite://{0}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks: {{ audit: {{ file: {{ path: {0}/out.ndjson }} }} }}\n{more}",
            place.path().display()
        ))
        .await
}

/// What each command stores, the daemon does; lists speak JSON.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_obeys() -> Result<()> {
    let place = Place::new()?;
    let daemon = start(&place, "").await?;
    let config = place.path().join("daemon.yaml").to_string_lossy().into_owned();
    daemon.ingest("push", &[upsert("a", 1), upsert("b", 1)]).await?;
    let run = |arguments: &[&str], code: i32, parts: &[&str]| {
        check(&[arguments, &["--config", &config]].concat(), code, parts)
    };

    daemon.wait_until("the sink delivered", async || Ok(daemon.sink("audit").await?["checkpoint"] == 2)).await?;
    run(&["status"], 0, &["log ", "source push (ingest): running", "sink audit (file): running, checkpoint 2"])?;
    run(&["sinks", "pause", "audit"], 0, &["paused"])?;
    daemon.wait_until("the sink is paused", async || Ok(daemon.sink("audit").await?["state"] == "paused")).await?;
    run(&["status"], 0, &["try: catalog-bridge sinks resume audit"])?;
    daemon.ingest("push", &[upsert("a", 2)]).await?;
    let preview = run(&["sinks", "preview", "audit"], 0, &[])?;
    let preview: Value = serde_json::from_str(&preview).context("JSON")?;
    ensure!(preview["messages"].as_array().is_some_and(|messages| messages.len() == 1), "{preview}");
    run(&["sinks", "resume", "audit"], 0, &[])?;
    daemon.wait_until("the sink delivers again", async || Ok(daemon.sink("audit").await?["checkpoint"] == 3)).await?;
    run(&["sinks", "rewind", "audit", "--to", "snapshot"], 0, &["generation 2"])?;
    let list: Value = serde_json::from_str(&run(&["sinks", "list", "--output", "json"], 0, &[])?).context("JSON")?;
    ensure!(list["audit"]["protocol"] == "file", "{list}");

    let tail = run(&["tail", "--offset", "oldest", "--no-follow"], 0, &[])?;
    ensure!(
        tail == "     1 added    component:default/a\n     2 added    component:default/b\n     3 updated  component:default/a  metadata.annotations.example.com/version, spec.owner\n",
        "{tail}"
    );
    run(&["tail", "--offset", "99", "--no-follow"], 1, &["head"])?;
    run(&["tail", "--offset", "x", "--no-follow"], 2, &["offset"])?;
    run(&["redact", "component:default/b"], 0, &["1 events redacted"])?;
    run(&["sinks", "pause", "ghost"], 1, &["ghost", "catalog-bridge status"])?;
    run(&["source", "reconcile", "push"], 1, &["nothing to reconcile"])?;
    let before = daemon.head().await?;
    run(&["log", "new-id", "--reason", "a test"], 0, &["the log's id is now"])?;
    ensure!(daemon.head().await? == before, "a new id moves no offset");
    ensure!(daemon.stop().await? == 0, "SIGTERM ends in order");

    run(&["log", "new-id", "--offline"], 0, &["the log's id is now"])?;
    Ok(())
}

/// With tokens the commands take a fitting one from the config; without one the daemon says which scope is missing.
#[tokio::test(flavor = "multi_thread")]
async fn commands_bring_the_admin_token_of_the_config() -> Result<()> {
    let place = Place::new()?;
    let token = place.path().join("admin.token");
    std::fs::write(&token, "an-operator-token-of-a-test\n")?;
    let (http, admin) = (crate::support::free_port()?, crate::support::free_port()?);
    let config = place.path().join("tokens.yaml");
    std::fs::write(
        &config,
        format!(
            "log: sqlite://{0}/log.db\nhttp:\n  listen: 127.0.0.1:{http}\n  admin: 127.0.0.1:{admin}\n  tokens:\n    \
             - {{ name: reader, token: a-reader-token-of-a-test }}\n    \
             - {{ name: operator, token: \"file:{0}/admin.token\", scopes: [admin, read] }}\n",
            place.path().display()
        ),
    )?;
    let config = config.to_string_lossy().into_owned();
    let mut child = std::process::Command::new(crate::support::BINARY).args(["run", "--config", &config]).spawn()?;
    let served = crate::support::wait_until("the daemon serves", async || {
        Ok(cli(&["status", "--config", &config])?.status.success())
    })
    .await;
    let reader = place.path().join("reader.token");
    std::fs::write(&reader, "a-reader-token-of-a-test")?;
    let refused = check(
        &["status", "--config", &config, "--token-file", &reader.to_string_lossy()],
        1,
        &["admin", "--token-file"],
    );
    child.kill()?;
    child.wait()?;
    served?;
    let refused = refused?;
    ensure!(!refused.contains("a-reader-token-of-a-test"), "no token is shown:\n{refused}");
    Ok(())
}

/// `check` dials log and catalog, writes to neither, and counts what a sink's destination would not take whole.
#[tokio::test(flavor = "multi_thread")]
async fn check_counts_the_entities_that_exceed_a_sinks_limit() -> Result<()> {
    let place = Place::new()?;
    let catalog = Catalog::create(&catalog_database().await?).await?;
    catalog.put_one("small", 1).await?;
    catalog.put_one("large", 1).await?;
    let mut connection = catalog.connect().await?;
    sqlx::query(
        "update final_entities set final_entity = jsonb_set(final_entity::jsonb, '{spec,definition}', to_jsonb(repeat('x', 50000)))::text
         where entity_ref = 'component:default/large'",
    )
    .execute(&mut connection)
    .await?;
    let log = postgres_store().await?.log(&place)?;
    let config = place.path().join("check.yaml");
    std::fs::write(
        &config,
        format!(
            "log: {log}\nsources:\n  backstage: {{ backstage-db: {{ url: \"{}\" }} }}\nsinks:\n  \
             bus: {{ kafka: {{ brokers: [\"127.0.0.1:1\"], topic: t, message_bytes_max: 20000 }} }}\n  \
             slim: {{ kafka: {{ brokers: [\"127.0.0.1:1\"], topic: u, message_bytes_max: 20000 }}, omit: [spec.definition] }}\n",
            catalog.bridge_url()
        ),
    )?;
    let config = config.to_string_lossy().into_owned();

    // The broker is away, so the whole is not right; the rest is told all the same.
    let found = check(
        &["check", "--config", &config],
        1,
        &[
            "no log yet",
            "capture by generations",
            "2 entities",
            "1 present entity exceeds",
            "no present entity exceeds",
        ],
    )?;

    ensure!(!found.contains("reader-secret"), "{found}");
    let schemas: i64 =
        sqlx::query_scalar("select count(*) from information_schema.schemata where schema_name = 'catalog_bridge'")
            .fetch_one(&mut <sqlx::PgConnection as sqlx::Connection>::connect(&log).await?)
            .await?;
    ensure!(schemas == 0, "check made the log's schema");
    check(
        &["source", "grants", "--print", "--config", &config],
        0,
        &["grant select on \"public\".final_entities to \"bridge_reader\""],
    )?;
    Ok(())
}

/// The README's first command: a changed file is an event on the screen, and Ctrl-C leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_a_changed_file() -> Result<()> {
    let place = Place::new()?;
    let screen = place.path().join("screen");
    let port = crate::support::free_port()?;
    let mut child = std::process::Command::new(crate::support::BINARY)
        .args(["demo", "--port", &port.to_string()])
        .stdout(std::fs::File::create(&screen)?)
        .spawn()?;
    let shown = || std::fs::read_to_string(&screen).unwrap_or_default();
    let steps = async {
        crate::support::wait_until("every example is shown", async || {
            Ok(shown().contains("added   component:default/website") && shown().contains("user:default/mei"))
        })
        .await?;
        let text = shown();
        let file =
            text.lines().find_map(|line| line.strip_prefix("change  ")).context("the file to change")?.to_owned();
        let examples = std::fs::read_to_string(&file)?;
        std::fs::write(&file, examples.replacen("owner: checkout", "owner: storefront", 1))?;
        crate::support::wait_until("the change is shown", async || {
            Ok(shown()
                .lines()
                .any(|line| line.contains("updated component:default/payment-service") && line.contains("spec.owner")))
        })
        .await?;
        for line in text.lines().filter(|line| line.contains("curl ")) {
            let url = line.split('\'').nth(1).context("a URL in quotes")?;
            let reply: Value = serde_json::from_str(&reqwest::get(url).await?.error_for_status()?.text().await?)?;
            let key = if url.contains("/events") { "events" } else { "items" };
            ensure!(reply[key].as_array().is_some_and(|list| !list.is_empty()), "{url}: {reply}");
        }
        Ok(file)
    }
    .await;
    let stopped = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    ensure!(stopped.success(), "Ctrl-C");
    let status = child.wait()?;
    let file: String = steps.with_context(|| format!("the screen shows:\n{}", shown()))?;
    ensure!(status.success(), "{status}");
    ensure!(!std::path::Path::new(&file).exists(), "{file} is left behind");
    Ok(())
}
