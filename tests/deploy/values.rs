//! The table of values in the chart's README is made from `values.yaml`, whose comments are its text.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::charts::ours;

const BEGIN: &str = "<!-- values: made from values.yaml -->\n";
const END: &str = "<!-- end of values -->";
const COMMAND: &str = "CATALOG_BRIDGE_WRITE=1 cargo test --test deploy the_table_of_values";

/// One row for each value that a user may set: a comment above a key is its text.
fn table(text: &str) -> Result<String> {
    let values: Value = serde_saphyr::from_str(text)?;
    let mut rows = String::from("| value | default | meaning |\n| --- | --- | --- |\n");
    let mut path: Vec<String> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(said) = trimmed.strip_prefix("# ") {
            comment.push(said);
            continue;
        }
        let Some((key, _)) = trimmed.split_once(':').filter(|_| !trimmed.starts_with('-')) else {
            comment.clear();
            continue;
        };
        path.truncate((line.len() - trimmed.len()) / 2);
        path.push(key.to_owned());
        let meaning = std::mem::take(&mut comment).join(" ").replace('|', "\\|");
        // The config is the bridge's own, described elsewhere.
        if path[0] == "config" && path.len() > 1 {
            continue;
        }
        let default = path.iter().fold(&values, |value, part| &value[part]);
        let has_rows_of_its_own = default.as_object().is_some_and(|members| !members.is_empty()) && path[0] != "config";
        if has_rows_of_its_own && meaning.is_empty() {
            continue;
        }
        let shown = if default.is_object() && default != &serde_json::json!({}) {
            String::new()
        } else {
            format!("`{default}`")
        };
        rows.push_str(&format!("| `{}` | {shown} | {meaning} |\n", path.join(".")));
    }
    Ok(rows)
}

#[test]
fn the_table_of_values_is_fresh() -> Result<()> {
    let text = std::fs::read_to_string(ours().join("values.yaml"))?;
    let page = ours().join("README.md");
    let found = std::fs::read_to_string(&page)?;
    let (before, rest) = found.split_once(BEGIN).context("README.md has no place for the values")?;
    let (_, after) = rest.split_once(END).context("README.md has no end of the values")?;
    let expected = format!("{before}{BEGIN}{}{END}{after}", table(&text)?);

    if std::env::var_os("CATALOG_BRIDGE_WRITE").is_some() {
        std::fs::write(&page, &expected)?;
    }
    ensure!(
        found == expected || std::env::var_os("CATALOG_BRIDGE_WRITE").is_some(),
        "{} is stale; make it again: {COMMAND}",
        page.display()
    );
    Ok(())
}

/// Every value has a rule in the schema, so that a misspelt one is refused.
#[test]
fn the_schema_knows_every_value() -> Result<()> {
    let values: Value = serde_saphyr::from_str(&std::fs::read_to_string(ours().join("values.yaml"))?)?;
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(ours().join("values.schema.json"))?)?;
    let mut open = vec![(String::new(), &values, &schema)];
    while let Some((path, value, schema)) = open.pop() {
        let Some(properties) = schema["properties"].as_object() else { continue };
        for (key, value) in value.as_object().into_iter().flatten() {
            let rule = properties.get(key).with_context(|| format!("the schema has no rule for {path}{key}"))?;
            open.push((format!("{path}{key}."), value, rule));
        }
    }
    Ok(())
}
