//! The JSON Schema of the config file, and `docs/configuration.md`: both come from the doc comments of the sections.

use serde_json::{Value, json};

use super::File;
use super::schema::{alternatives, takes, words};
use super::units::UNITS;
use crate::sinks::CONNECTORS;

/// The schema, with the sections of all connectors of this build.
pub fn json_schema() -> Value {
    let mut root = schemars::schema_for!(File).to_value();
    root["title"] = json!("catalog-bridge");
    for kind in CONNECTORS {
        let mut section = kind.schema().to_value();
        let definitions = section.get_mut("$defs").map(Value::take).unwrap_or_default();
        if let Some(keys) = section.as_object_mut() {
            keys.remove("$schema");
            keys.remove("$defs");
            keys.remove("title");
        }
        prefix_references(&mut section, kind.name());
        if let Value::Object(definitions) = definitions {
            for (name, mut definition) in definitions {
                prefix_references(&mut definition, kind.name());
                root["$defs"][format!("{}.{name}", kind.name())] = definition;
            }
        }
        root["$defs"]["SinkSection"]["properties"][kind.name()] = section;
    }
    root
}

/// Connectors may use the same type names; each gets its own.
fn prefix_references(value: &mut Value, prefix: &str) {
    match value {
        Value::Object(keys) => {
            if let Some(Value::String(reference)) = keys.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/$defs/")
            {
                *reference = format!("#/$defs/{prefix}.{name}");
            }
            keys.values_mut().for_each(|value| prefix_references(value, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prefix_references(item, prefix)),
        _ => {}
    }
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from the doc comments in src/config and the connectors by `catalog-bridge schema --docs`; edit those. -->

One YAML file, named by `--config` (default `catalog-bridge.yaml`, or `CATALOG_BRIDGE_CONFIG`). `catalog-bridge check --offline`
says what is wrong with it, by line; `catalog-bridge schema` prints its JSON Schema, for editors.

Any text may hold `${NAME}` (an environment variable), `${NAME:-default}`, and `$$` for a dollar sign. A secret may also be
`file:/path`: the file is read at each new connection, so that a mounted secret can rotate. Sizes are written `512KiB`, `64MiB`,
`5GiB`; periods `250ms`, `30s`, `10m`, `12h`, `30d`; shares `50%`.

In a URL the password must be percent-encoded. Where it may hold any character, write the database by its parts (`host`, `database`,
`user`, `password`) instead.
";

/// The page `docs/configuration.md`.
pub fn markdown() -> String {
    let root = json_schema();
    let mut page = INTRODUCTION.to_owned();
    let mut writer = Writer { root: &root, page: &mut page };
    writer.properties("", &root);
    page
}

struct Writer<'run> {
    root: &'run Value,
    page: &'run mut String,
}

/// A section that gets a heading and a table of its own.
struct Section<'root> {
    path: String,
    text: &'root str,
    schema: &'root Value,
}

impl<'run> Writer<'run> {
    /// A table of the keys, then the sections below them.
    fn properties(&mut self, path: &str, object: &'run Value) {
        let keys: Vec<(&String, &Value)> =
            object.get("properties").and_then(Value::as_object).into_iter().flatten().collect();
        let required: Vec<&str> =
            object.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let mut sections = Vec::new();
        if !keys.is_empty() {
            self.page.push_str("\n| key | value | meaning |\n| --- | --- | --- |\n");
        }
        for (key, schema) in keys {
            let below = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            let text = text_of(schema).unwrap_or_default();
            let value = self.value(schema);
            let needed = if required.contains(&key.as_str()) { "**Required.** " } else { "" };
            self.page.push_str(&format!("| `{key}` | {value} | {needed}{} |\n", cell(text)));
            sections.extend(self.sections(&below, schema));
        }
        for section in sections {
            self.page.push_str(&format!("\n## `{}`\n", section.path));
            if !section.text.is_empty() {
                self.page.push_str(&format!("\n{}\n", section.text));
            }
            self.properties(&section.path, section.schema);
        }
    }

    /// The objects with keys of their own that stand at a key, in a list or under names too.
    fn sections(&self, path: &str, schema: &'run Value) -> Vec<Section<'run>> {
        let mut found = Vec::new();
        for alternative in alternatives(self.root, schema) {
            if alternative.get("properties").is_some() {
                let text = text_of(alternative).or(text_of(schema)).unwrap_or_default();
                found.push(Section { path: path.to_owned(), text, schema: alternative });
            } else if let Some(items) = alternative.get("items") {
                found.extend(self.sections(&format!("{path}[]"), items));
            } else if let Some(named) = alternative.get("additionalProperties").filter(|named| named.is_object()) {
                found.extend(self.sections(&format!("{path}.<name>"), named));
            }
        }
        found
    }

    /// What may be written at a key.
    fn value(&self, schema: &Value) -> String {
        let alternatives = alternatives(self.root, schema);
        let mut kinds: Vec<String> = Vec::new();
        for alternative in &alternatives {
            kinds.extend(words(alternative).iter().map(|word| format!("`{word}`")));
        }
        let asks = |kind: &str| {
            alternatives.iter().any(|alternative| takes(alternative, kind) && words(alternative).is_empty())
        };
        let is_secret = alternatives.iter().any(|alternative| alternative.get("writeOnly").is_some());
        let unit = alternatives.iter().find_map(|alternative| {
            let pattern = alternative.get("pattern")?.as_str()?;
            UNITS.iter().find_map(|(known, word)| (*known == pattern).then_some(*word))
        });
        match (unit, is_secret) {
            (Some(unit), _) => kinds.push(unit.to_owned()),
            (None, true) => kinds.push("secret".to_owned()),
            (None, false) if asks("string") => kinds.push("text".to_owned()),
            (None, false) => {}
        }
        if unit.is_none() && (asks("integer") || asks("number")) {
            kinds.push("number".to_owned());
        }
        for (kind, word) in [("boolean", "`true`, `false`"), ("array", "list"), ("object", "section")] {
            if asks(kind) {
                kinds.push(word.to_owned());
            }
        }
        kinds.join(", ")
    }
}

fn text_of(schema: &Value) -> Option<&str> {
    schema.get("description").and_then(Value::as_str)
}

/// One line, with what a table would take for its own escaped.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
