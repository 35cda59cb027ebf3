//! Alerts and dashboard: their rules hold what they say, every metric they name exists, and every alert has its page.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::deployment;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::charts::{ours, parse, render, root, run};
use crate::support::catalog::Catalog;
use crate::support::{Place, catalog_database};

fn rules() -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(root().join("deploy/prometheus/rules.yaml"))?;
    let file = parse(&text)?.into_iter().next().context("a file")?;
    file["groups"][0]["rules"].as_array().cloned().context("rules")
}

#[tokio::test]
async fn the_rules_pass_their_unit_tests() -> Result<()> {
    let place = root().join("deploy/prometheus");
    let promtool = deployment::promtool().await?;
    run(Command::new(&promtool).args(["check", "rules", "rules.yaml"]).current_dir(&place)).await?;
    run(Command::new(&promtool).args(["test", "rules", "rules.test.yaml"]).current_dir(&place)).await?;

    let tests = std::fs::read_to_string(place.join("rules.test.yaml"))?;
    for rule in rules()? {
        let name = rule["alert"].as_str().context("an alert")?;
        ensure!(tests.contains(&format!("alertname: {name}")), "{name} has no unit test");
    }
    Ok(())
}

/// A page that says what to do, with a command, where the alert says it is.
#[test]
fn every_alert_has_a_page_that_names_the_command_that_helps() -> Result<()> {
    for rule in rules()? {
        let name = rule["alert"].as_str().context("an alert")?;
        let link = rule["annotations"]["runbook_url"].as_str().with_context(|| format!("{name} has no runbook_url"))?;
        let path = link.split_once("/blob/main/").with_context(|| format!("{link} is not in this repository"))?.1;
        let page = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        ensure!(page.starts_with(&format!("# {name}\n")), "{path} is not about {name}");
        ensure!(page.contains("`catalog-bridge "), "{path} names no command");
    }
    Ok(())
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    let is_metric = |word: &&str| word.starts_with("catalog_bridge_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

/// What a scrape holds: a counter ends in `_total`, a histogram has three names.
fn exposed(types: impl Iterator<Item = (String, String)>) -> BTreeSet<String> {
    let all = types.flat_map(|(name, kind)| match kind.as_str() {
        "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).into(),
        _ => vec![name],
    });
    all.collect()
}

fn exposed_by(scrape: &str) -> BTreeSet<String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    exposed(types.map(|(name, kind)| {
        let end = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        (format!("{name}{end}"), kind.to_owned())
    }))
}

/// Everything that is registered, as the generated page lists it.
fn registered() -> BTreeSet<String> {
    let page = catalog_bridge::daemon::metrics_page();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let types = rows.filter_map(|(name, rest)| Some((name.to_owned(), rest.split_once(' ')?.0.to_owned())));
    exposed(types)
}

/// What no daemon has to tell before something went wrong.
const ONLY_IN_TROUBLE: [&str; 4] = [
    "catalog_bridge_retention_sink_ratio",
    "catalog_bridge_source_gaps_total",
    "catalog_bridge_source_reconcile_repairs_total",
    "catalog_bridge_store_failures_total",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_rules_and_dashboard_name_is_exposed() -> Result<()> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    catalog.put_one("a", 1).await?;
    let place = Place::new()?;
    let (log, audit) = (place.path().join("log.db"), place.path().join("audit.ndjson"));
    let sources = format!(
        "sources:\n  backstage: {{ backstage-db: {{ url: \"{}\" }} }}\n  away: {{ backstage-db: {{ url: \"postgres://nobody@127.0.0.1:1/none\" }} }}\n",
        catalog.bridge_url()
    );
    let sinks = format!("sinks: {{ audit: {{ file: {{ path: \"{}\" }} }} }}\n", audit.display());
    let daemon = place.start(&format!("log: sqlite://{}\n{sources}{sinks}", log.display())).await?;
    daemon
        .wait_until("the event is delivered, and the other source has failed", async || {
            let is_delivered = daemon.sink("audit").await?["checkpoint"].as_u64() == Some(1);
            Ok(is_delivered && daemon.metrics().await?.contains("catalog_bridge_source_errors_total"))
        })
        .await?;
    let metrics = daemon.metrics().await?;

    let mut named = names(&std::fs::read_to_string(root().join("deploy/grafana/catalog-bridge.json"))?);
    for rule in rules()? {
        named.extend(names(rule["expr"].as_str().context("an expression")?));
    }
    let (exposed, registered) = (exposed_by(&metrics), registered());
    let unknown: Vec<_> = named.iter().filter(|name| !registered.contains(*name)).collect();
    ensure!(unknown.is_empty(), "nobody registers {unknown:?}");
    let missing: Vec<_> = named.difference(&exposed).filter(|name| !ONLY_IN_TROUBLE.contains(&name.as_str())).collect();
    ensure!(missing.is_empty(), "the daemon does not expose {missing:?}, but {exposed:?}");
    ensure!(named.len() > 15, "only {named:?} were found");

    for state in ["standby", "paused", "blocked", "misconfigured", "diverged", "expired"] {
        let line = format!("catalog_bridge_sink_state{{sink=\"audit\",state=\"{state}\"}}");
        ensure!(metrics.contains(&line), "no state {state} in {metrics}");
    }
    Ok(())
}

/// One source: the folders for people are links to the files that the chart carries.
#[tokio::test]
async fn the_chart_carries_the_same_rules_and_dashboard() -> Result<()> {
    let rendered = render(&json!({ "prometheusRule": { "enabled": true }, "dashboard": { "enabled": true } })).await?;

    ensure!(rendered.one("PrometheusRule")["spec"]["groups"][0]["rules"] == Value::Array(rules()?));
    let board = rendered.named("ConfigMap", "bridge-catalog-bridge-dashboard");
    ensure!(board["metadata"]["labels"]["grafana_dashboard"] == "1");
    let text = board["data"]["catalog-bridge.json"].as_str().context("a text")?;
    let carried: Value = serde_json::from_str(text)?;
    let shown: Value =
        serde_json::from_str(&std::fs::read_to_string(root().join("deploy/grafana/catalog-bridge.json"))?)?;
    ensure!(carried == shown && shown["panels"].as_array().is_some_and(|panels| panels.len() > 10));
    for (link, file) in [("prometheus/rules.yaml", "rules.yaml"), ("grafana/catalog-bridge.json", "dashboard.json")] {
        let link = root().join("deploy").join(link).canonicalize()?;
        ensure!(link == ours().join("files").join(file).canonicalize()?, "{} is a copy", link.display());
    }
    Ok(())
}
