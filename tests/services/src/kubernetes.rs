//! Kubernetes without a cluster: its own schemas, made from the OpenAPI files of its Go module.
//!
//! The schemas are strict: a field that a type does not have is refused, as `kubectl apply --validate=strict` does.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{cache, go};

/// A release of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubernetesVersion {
    /// The oldest that the chart supports.
    Old,
    /// The newest.
    New,
}

impl KubernetesVersion {
    /// As `v1.37.2`.
    pub fn text(self) -> &'static str {
        match self {
            Self::Old => "v1.29.6",
            Self::New => "v1.37.2",
        }
    }
}

/// Counted up when the making changes, so that a cache of before is left alone.
const MAKING: &str = "2";

/// What charts render, by group (empty for the core) and kind.
const KINDS: [(&str, &str); 9] = [
    ("", "ConfigMap"),
    ("", "PersistentVolumeClaim"),
    ("", "Pod"),
    ("", "Secret"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("apps", "Deployment"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
];

const OPERATOR_MODULE: &str = "github.com/prometheus-operator/prometheus-operator";
const OPERATOR_VERSION: &str = "v0.85.0";
const OPERATOR_KINDS: [&str; 2] = ["servicemonitors", "prometheusrules"];

/// A directory with a strict schema for each kind that charts render, named as kubeconform names it: `KIND-GROUP-VERSION.json`, the
/// group up to its first dot, and without it for the core.
pub async fn schemas(version: KubernetesVersion) -> Result<PathBuf> {
    let version = version.text();
    cache::installed(&format!("kubernetes-schemas-{MAKING}-{version}"), async |directory| {
        let module = go::module("k8s.io/kubernetes", version, directory).await?;
        let openapi = read_json(&module.join("api/openapi-spec/swagger.json"))?;
        let mut definitions = openapi["definitions"].as_object().context("an OpenAPI file has definitions")?.clone();
        definitions.values_mut().for_each(be_strict);
        for (group, kind) in KINDS {
            write_schema(&definitions, group, kind, directory)?;
        }
        Ok(())
    })
    .await
}

/// The same for the kinds of the Prometheus operator.
pub async fn operator_schemas() -> Result<PathBuf> {
    cache::installed(&format!("prometheus-operator-schemas-{MAKING}-{OPERATOR_VERSION}"), async |directory| {
        for plural in OPERATOR_KINDS {
            let definition = operator_definition(plural, directory).await?;
            let spec = &definition["spec"];
            let version = &spec["versions"][0];
            let mut schema = version["schema"]["openAPIV3Schema"].clone();
            be_strict(&mut schema);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let file = file_name(&text(&spec["names"]["kind"]), &text(&spec["group"]), &text(&version["name"]));
            write_json(&directory.join(file), &schema)?;
        }
        Ok(())
    })
    .await
}

/// A CustomResourceDefinition of the Prometheus operator, as an API server takes it.
pub(crate) async fn operator_definition(plural: &str, directory: &Path) -> Result<Value> {
    let module = go::module(OPERATOR_MODULE, OPERATOR_VERSION, directory).await?;
    read_json(&module.join(format!("jsonnet/prometheus-operator/{plural}-crd.json")))
}

/// All plural names of which [`operator_definition`] knows the definition.
pub(crate) fn operator_kinds() -> &'static [&'static str] {
    &OPERATOR_KINDS
}

fn write_schema(definitions: &Map<String, Value>, group: &str, kind: &str, directory: &Path) -> Result<()> {
    let is_it = |definition: &Value| {
        let names = definition["x-kubernetes-group-version-kind"].as_array();
        names
            .into_iter()
            .flatten()
            .any(|name| name["group"] == group && name["kind"] == kind && name["version"] == "v1")
    };
    let (name, _) = definitions
        .iter()
        .find(|(_, definition)| is_it(definition))
        .with_context(|| format!("Kubernetes has no {group}/v1 {kind}"))?;
    let mut needed = BTreeSet::new();
    collect_needed(definitions, name, &mut needed);
    let needed: Map<String, Value> =
        needed.into_iter().map(|name| (name.clone(), definitions.get(&name).cloned().unwrap_or_default())).collect();
    let schema = json!({ "allOf": [{ "$ref": format!("#/definitions/{name}") }], "definitions": needed });
    write_json(&directory.join(file_name(kind, group, "v1")), &schema)
}

fn file_name(kind: &str, group: &str, version: &str) -> String {
    let group = group.split('.').next().filter(|group| !group.is_empty()).map(|group| format!("-{group}"));
    format!("{}{}-{version}.json", kind.to_lowercase(), group.unwrap_or_default())
}

fn collect_needed(definitions: &Map<String, Value>, name: &str, needed: &mut BTreeSet<String>) {
    if !needed.insert(name.to_owned()) {
        return;
    }
    let mut open: Vec<&Value> = definitions.get(name).into_iter().collect();
    while let Some(value) = open.pop() {
        match value {
            Value::Object(members) => {
                let target = members.get("$ref").and_then(Value::as_str);
                if let Some(target) = target.and_then(|target| target.strip_prefix("#/definitions/")) {
                    collect_needed(definitions, target, needed);
                }
                open.extend(members.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
}

/// Refuses fields that a type does not have, and says in JSON Schema's words what may be a number or a text.
fn be_strict(schema: &mut Value) {
    let Some(members) = schema.as_object_mut() else { return };
    let description = members.remove("description").unwrap_or_default();
    let is_quantity = description.as_str().is_some_and(|text| text.starts_with("Quantity is a fixed-point"));
    if is_quantity || members.get("format").is_some_and(|format| format == "int-or-string") {
        members.insert("type".to_owned(), json!(["string", if is_quantity { "number" } else { "integer" }]));
        members.remove("format");
    }
    if members.contains_key("properties") && !members.contains_key("x-kubernetes-preserve-unknown-fields") {
        members.entry("additionalProperties").or_insert(json!(false));
    }
    if let Some(properties) = members.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(be_strict);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = members.get_mut(key) {
            be_strict(inner);
        }
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("writing {}", path.display()))
}
