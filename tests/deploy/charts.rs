//! Renders charts with Helm, and finds what they made.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use catalog_bridge_services::deployment;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// What a chart made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) objects: Vec<Value>,
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The chart under test.
pub(crate) fn ours() -> PathBuf {
    root().join("deploy/helm/catalog-bridge")
}

/// A chart of the tests.
pub(crate) fn parent(name: &str) -> PathBuf {
    root().join("tests/deploy/charts").join(name)
}

/// Renders our chart; an error holds Helm's own words.
pub(crate) async fn render(values: &Value) -> Result<Rendered> {
    render_chart(&ours(), values).await
}

/// Renders a chart as `helm install bridge` in the namespace `catalog` would.
pub(crate) async fn render_chart(chart: &Path, values: &Value) -> Result<Rendered> {
    let place = TempDir::new()?;
    let file = place.path().join("values.json");
    std::fs::write(&file, values.to_string())?;
    let mut helm = Command::new(deployment::helm().await?);
    helm.args(["template", "bridge"]).arg(chart).args(["--namespace", "catalog", "--values"]).arg(&file);
    let text = run(&mut helm).await?;
    Ok(Rendered { objects: parse(&text)?, text })
}

/// Runs a tool to its end; what it printed becomes the error when it fails.
pub(crate) async fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running a tool")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(printed)
}

/// The documents of a YAML text.
pub(crate) fn parse(text: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in format!("\n{text}").split("\n---") {
        let object: Value = serde_saphyr::from_str(document).with_context(|| format!("not YAML:\n{document}"))?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

impl Rendered {
    /// The only object of a kind.
    #[track_caller]
    pub(crate) fn one(&self, kind: &str) -> &Value {
        let found = self.all(kind);
        assert_eq!(found.len(), 1, "objects of kind {kind} in\n{}", self.text);
        found[0]
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The object of this kind and name.
    #[track_caller]
    pub(crate) fn named(&self, kind: &str, name: &str) -> &Value {
        let found = self.all(kind).into_iter().find(|object| object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name} in\n{}", self.text))
    }
}

/// A container of a pod's template by name, from either list.
#[track_caller]
pub(crate) fn container<'a>(workload: &'a Value, name: &str) -> &'a Value {
    let pod = workload.pointer("/spec/template/spec").unwrap_or(&workload["spec"]);
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| pod[list].as_array());
    let found = lists.flatten().find(|container| container["name"] == name);
    found.unwrap_or_else(|| panic!("no container {name} in {workload:#}"))
}
