//! What endpoints answer while the daemon runs, as an operator sees it, and how each sink gets out of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use catalog_bridge_services::{WebhookReceiver, WebhookReply};
use serde_json::json;

use crate::support::{Daemon, Place, cli, upsert};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const WRONG: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn command(daemon: &Daemon, arguments: &[&str]) -> Result<()> {
    let output = cli(&[arguments, &["--admin", &daemon.admin]].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// P7, P8: refused for good (`block` and `skip`), gone, throttled, and signed with a wrong secret, one sink each, beside one that is
/// well. Each says what it waits for and the command that helps; no secret is in what the daemon tells.
#[tokio::test(flavor = "multi_thread")]
async fn each_answer_is_told_with_the_command_that_helps() -> Result<()> {
    let receiver = WebhookReceiver::start(&[SECRET])?;
    let (is_gone, is_busy) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (gone, busy) = (Arc::clone(&is_gone), Arc::clone(&is_busy));
    receiver.answer(move |request| {
        let is_refused = String::from_utf8_lossy(&request.body).contains("component:default/refused");
        match request.target.as_str() {
            "/block" | "/skip" if is_refused => {
                WebhookReply { body: "spec.owner is unknown".to_owned(), ..WebhookReply::status(422) }
            }
            "/gone" if gone.load(Ordering::SeqCst) => WebhookReply::status(410),
            "/busy" if busy.load(Ordering::SeqCst) => WebhookReply::status(429).header("retry-after", "1"),
            _ => WebhookReply::stored(),
        }
    });
    let place = Place::new()?;
    let sink = |name: &str, secret: &str, more: &str| {
        let section = json!({
            "url": format!("http://{}/{name}", receiver.address()),
            "secret": secret,
            "allow_http": true,
            "allow_addresses": ["127.0.0.1"],
        });
        format!("  {name}: {{ webhook: {section}, start: earliest{more} }}\n")
    };
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n{}{}{}{}{}{}",
        place.path().display(),
        sink("well", SECRET, ""),
        sink("block", SECRET, ""),
        sink("skip", SECRET, ", on_refused: skip"),
        sink("gone", SECRET, ""),
        sink("busy", SECRET, ""),
        sink("stranger", WRONG, ""),
    );
    let daemon = place.start(&config).await?;

    daemon.ingest("push", &[upsert("first", 1), upsert("refused", 1), upsert("last", 1)]).await?;

    daemon.wait_for_checkpoint("well", 3).await?;
    daemon.wait_for_checkpoint("skip", 3).await?;
    daemon.wait_for_state("block", "blocked", "spec.owner is unknown").await?;
    daemon.wait_for_state("block", "blocked", "catalog-bridge sinks skip block 2").await?;
    daemon.wait_for_state("gone", "diverged", "410 Gone").await?;
    daemon.wait_for_state("gone", "diverged", "catalog-bridge sinks resume gone").await?;
    daemon.wait_for_state("busy", "retrying", "429 Too Many Requests").await?;
    daemon.wait_for_state("stranger", "misconfigured", "401 Unauthorized").await?;
    ensure!(daemon.sink("block").await?["checkpoint"].as_u64() == Some(1), "what comes before it is delivered");

    is_busy.store(false, Ordering::SeqCst);
    is_gone.store(false, Ordering::SeqCst);
    daemon.wait_for_checkpoint("busy", 3).await?;
    ensure!(daemon.sink("gone").await?["state"] == "diverged", "only an operator ends this");
    command(&daemon, &["sinks", "resume", "gone"])?;
    daemon.wait_for_checkpoint("gone", 3).await?;
    command(&daemon, &["sinks", "skip", "block", "2"])?;
    daemon.wait_for_checkpoint("block", 3).await?;

    for (name, count) in [("well", 3), ("block", 2), ("skip", 2), ("gone", 3), ("busy", 3), ("stranger", 0)] {
        let stored = receiver.stored();
        let offsets: std::collections::BTreeSet<&str> = stored
            .iter()
            .filter(|request| request.target == format!("/{name}"))
            .map(|request| request.headers["catalog-bridge-offset"].as_str())
            .collect();
        ensure!(offsets.len() == count, "{name} holds {offsets:?}");
        ensure!(count != 2 || !offsets.contains("2"), "{name} holds what it refused");
    }
    let told = format!("{}{}{}", daemon.log(), daemon.status().await?, daemon.metrics().await?);
    ensure!(!told.contains("MfKQ9r8") && !told.contains("AAECAwQF"), "a secret is in what the daemon tells");
    ensure!(daemon.stop().await? == 0, "it stops in good order");
    Ok(())
}
