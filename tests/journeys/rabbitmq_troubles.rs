//! What goes wrong with RabbitMQ while the daemon runs, as an operator sees it, and how each sink gets out of it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::{RabbitMq, RabbitMqOptions};
use serde_json::{Value, json};

use crate::support::{Place, cli, component, upsert, wait_until};

/// The broker's management API: makes queues and reads them.
struct Management {
    client: reqwest::Client,
    url: String,
}

impl Management {
    async fn put(&self, path: &str, body: &Value) -> Result<()> {
        let request = self.client.put(format!("{}/api/{path}", self.url)).json(body);
        request.basic_auth("guest", Some("guest")).send().await?.error_for_status()?;
        Ok(())
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.client.post(format!("{}/api/{path}", self.url)).json(body);
        let text = request.basic_auth("guest", Some("guest")).send().await?.error_for_status()?.text().await?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    async fn unbind(&self, queue: &str) -> Result<()> {
        let url = format!("{}/api/bindings/%2f/e/catalog/q/{queue}/{queue}.%23", self.url);
        self.client.delete(url).basic_auth("guest", Some("guest")).send().await?.error_for_status()?;
        Ok(())
    }

    async fn bind(&self, queue: &str) -> Result<()> {
        let binding = json!({ "routing_key": format!("{queue}.#") });
        self.post(&format!("bindings/%2f/e/catalog/q/{queue}"), &binding).await.map(drop)
    }

    /// Takes everything out of a queue: the offsets, in its order.
    async fn take(&self, queue: &str) -> Result<Vec<u64>> {
        let body = json!({ "count": 10_000, "ackmode": "ack_requeue_false", "encoding": "auto" });
        let messages = self.post(&format!("queues/%2f/{queue}/get"), &body).await?;
        let offset = |message: &Value| {
            message["properties"]["headers"]["catalog-bridge-offset"]
                .as_str()
                .context("an offset")?
                .parse()
                .context("a number")
        };
        messages.as_array().context("messages")?.iter().map(offset).collect()
    }
}

/// P7, P8: credentials that are wrong, a queue that is unbound in mid-run, and a message above the broker's limit, one sink each,
/// beside one that is well. Nobody restarts anything; what the operator mends is noticed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_is_told_and_left_by_itself() -> Result<()> {
    let settings = "max_message_size = 20000".to_owned();
    let rabbit = RabbitMq::start(RabbitMqOptions { settings, ..Default::default() }).await?;
    let management =
        Management { client: reqwest::Client::builder().no_proxy().build()?, url: rabbit.management_url(1) };
    management.put("exchanges/%2f/catalog", &json!({ "type": "topic", "durable": true })).await?;
    for queue in ["well", "login", "route", "block", "skip"] {
        let quorum = json!({ "durable": true, "arguments": { "x-queue-type": "quorum" } });
        management.put(&format!("queues/%2f/{queue}"), &quorum).await?;
        management.bind(queue).await?;
    }
    rabbit.control(1, &["add_user", "late", "s3cret-late"]).await?;
    rabbit.control(1, &["set_permissions", "late", ".*", ".*", ".*"]).await?;
    let place = Place::new()?;
    let sink = |name: &str, login: &str, more: &str| {
        format!(
            "  {name}: {{ rabbitmq: {{ url: \"amqp://{login}@{}/%2f\", exchange: catalog, routing_key: \"{name}.{{name}}\", \
             queue: {name} }}, start: earliest{more} }}\n",
            rabbit.address(1)
        )
    };
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n{}{}{}{}{}",
        place.path().display(),
        sink("well", "guest:guest", ", omit: [spec.filler]"),
        sink("login", "late:s3cret-wrong", ", omit: [spec.filler]"),
        sink("route", "guest:guest", ", omit: [spec.filler]"),
        sink("block", "guest:guest", ""),
        sink("skip", "guest:guest", ", on_refused: skip"),
    );
    let daemon = place.start(&config).await?;
    let batch =
        |from: u64| (from..from + 500).map(|number| upsert(&format!("e{}", number % 40), number)).collect::<Vec<_>>();

    daemon.ingest("push", &batch(0)).await?;
    daemon.wait_for_checkpoint("route", 500).await?;
    management.unbind("route").await?;
    let mut large = component("large", 1);
    large["spec"]["filler"] = json!("f".repeat(30_000));
    daemon.ingest("push", &[json!({ "upsert": large })]).await?;
    daemon.ingest("push", &batch(501)).await?;

    daemon.wait_for_checkpoint("well", 1_001).await?;
    daemon.wait_for_checkpoint("skip", 1_001).await?;
    daemon.wait_for_state("login", "misconfigured", "ACCESS_REFUSED").await?;
    daemon.wait_for_state("route", "misconfigured", "found no queue (NO_ROUTE)").await?;
    daemon.wait_for_state("block", "blocked", "is larger than configured max size 20000").await?;
    daemon.wait_for_state("block", "blocked", "catalog-bridge sinks skip block 501").await?;
    ensure!(daemon.sink("block").await?["checkpoint"].as_u64() == Some(500), "what comes before it is delivered");

    rabbit.control(1, &["change_password", "late", "s3cret-wrong"]).await?;
    management.bind("route").await?;
    let skipped =
        cli(&["sinks", "skip", "block", "501", "--config", &place.path().join("daemon.yaml").display().to_string()])?;
    ensure!(skipped.status.success(), "{skipped:?}");

    let everything: Vec<u64> = (1..=1_001).collect();
    for (name, has_large) in [("well", true), ("login", true), ("route", true), ("block", false), ("skip", false)] {
        daemon.wait_for_checkpoint(name, 1_001).await?;
        let found: BTreeSet<u64> = management.take(name).await?.into_iter().collect();
        let wanted: BTreeSet<u64> = everything.iter().copied().filter(|offset| has_large || *offset != 501).collect();
        ensure!(found == wanted, "{name}: {:?}", found.symmetric_difference(&wanted).collect::<Vec<_>>());
        wait_until("it runs again", async || Ok(daemon.sink(name).await?["state"] == "running")).await?;
    }
    let told = format!("{}{}{}", daemon.log(), daemon.status().await?, daemon.metrics().await?);
    ensure!(!told.contains("s3cret"), "a password is in what the daemon tells");
    ensure!(!daemon.log().contains("Server returned us"), "the client library logs whole messages");

    rabbit.control(1, &["set_vm_memory_high_watermark", "absolute", "1MB"]).await?;
    daemon.ingest("push", &batch(1_002)).await?;
    daemon.wait_for_state("well", "stalled", "blocks publishers").await?;
    rabbit.control(1, &["set_vm_memory_high_watermark", "absolute", "1GB"]).await?;
    daemon.wait_for_checkpoint("well", 1_501).await?;
    let found: Vec<u64> = management.take("well").await?;
    ensure!(found.len() == 500, "a stall repeats nothing: {} messages", found.len());
    ensure!(daemon.stop().await? == 0, "it stops in good order");
    Ok(())
}
