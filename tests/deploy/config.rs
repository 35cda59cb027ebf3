//! What becomes the bridge's config file is one that the bridge takes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::charts::render;

/// `check --offline` with every variable that the deployments name.
pub(crate) async fn check_offline(config: &Path) -> Result<()> {
    let output = Command::new(crate::support::BINARY)
        .args(["check", "--offline", "--config"])
        .arg(config)
        .env("LOG_DATABASE_URL", "postgres://bridge:secret@db/catalog_bridge")
        .env("CATALOG_DATABASE_URL", "postgres://reader:secret@db/backstage_plugin_catalog")
        .env("READ_TOKEN", "a-token-of-sixteen-or-more")
        .env("AMQP_URL", "amqps://bridge:secret@rabbitmq:5671/%2f")
        .output()
        .await?;
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{} is refused: {told}", config.display());
    Ok(())
}

#[tokio::test]
async fn the_rendered_config_passes_the_check_of_the_binary() -> Result<()> {
    let sinks = json!({
        "platform": { "kafka": { "brokers": ["kafka:9092"], "topic": "catalog.entities" }, "filter": "kind=component" },
        "subjects": { "nats": { "servers": ["nats://nats:4222"], "stream": "CATALOG" } },
        "queue": { "rabbitmq": { "url": "${AMQP_URL}", "exchange": "catalog" } },
    });
    let tokens = json!([{ "name": "search", "token": "${READ_TOKEN}", "scopes": ["read"] }]);
    let cases = [
        json!({}),
        json!({ "mode": "sidecar" }),
        json!({ "config": { "sinks": sinks } }),
        json!({ "config": { "http": { "tokens": tokens } } }),
        json!({ "config": { "log": { "url": "${LOG_DATABASE_URL}", "retention": { "age": "7d" } } } }),
        json!({ "config": { "log": "sqlite:///var/lib/catalog-bridge/log.db" } }),
    ];
    for values in cases {
        let rendered = render(&values).await?;
        let text = rendered.named("ConfigMap", "bridge-catalog-bridge")["data"]["catalog-bridge.yaml"].clone();
        let place = tempfile::tempdir()?;
        let file = place.path().join("catalog-bridge.yaml");
        std::fs::write(&file, text.as_str().context("a text")?)?;
        check_offline(&file).await.with_context(|| format!("{values}"))?;
    }
    Ok(())
}

/// Without a token everybody may read only because the values say so; the probes' port is never another.
#[tokio::test]
async fn listeners_are_filled_in_where_the_values_leave_them_out() -> Result<()> {
    let http = async |values: Value| -> Result<Value> {
        let rendered = render(&values).await?;
        let text = rendered.named("ConfigMap", "bridge-catalog-bridge")["data"]["catalog-bridge.yaml"].clone();
        let config: Value = serde_saphyr::from_str(text.as_str().context("a text")?)?;
        Ok(config["http"].clone())
    };
    ensure!(http(json!({})).await? == json!({ "listen": "0.0.0.0:8219", "admin": "127.0.0.1:8220", "auth": "none" }));
    let told =
        http(json!({ "config": { "http": { "tokens": [{ "name": "a", "token": "${T}" }], "admin": "off" } } })).await?;
    ensure!(told["auth"].is_null() && told["admin"] == "off" && told["listen"] == "0.0.0.0:8219", "{told}");
    Ok(())
}
