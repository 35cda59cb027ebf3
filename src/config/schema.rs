//! Turns a document into JSON, guided by the config's JSON Schema.
//!
//! Invariants: a key that the schema does not know is refused with its line and the nearest known key; so is a missing key and
//! a value of another type. Everything that is wrong is found in one go. What an environment variable held becomes a
//! number or a boolean only where the schema asks for one; what stands at a secret key is hidden from every refusal.

use serde_json::{Map, Value};

use super::document::{Content, Entry, Node};
use super::refusal::{Refusals, nearest, suggestion};

/// The document as JSON. With refusals, the JSON is incomplete.
pub(super) fn convert(root: &Node, schema: &Value, refusals: &mut Refusals<'_>) -> Value {
    Converter { schema, refusals, path: Vec::new() }.node(root, schema, root.line)
}

/// All alternatives of a schema, with `$ref`, `anyOf` and `oneOf` resolved.
pub(super) fn alternatives<'schema>(root: &'schema Value, schema: &'schema Value) -> Vec<&'schema Value> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        return target.map_or_else(Vec::new, |target| alternatives(root, target));
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(list) = schema.get(word).and_then(Value::as_array) {
            return list.iter().flat_map(|item| alternatives(root, item)).collect();
        }
    }
    vec![schema]
}

/// Whether one alternative takes values of this type.
pub(super) fn takes(alternative: &Value, kind: &str) -> bool {
    match alternative.get("type") {
        Some(Value::String(name)) => name == kind,
        Some(Value::Array(names)) => names.iter().any(|name| name == kind),
        _ => is_any(alternative) || (kind == "string" && !words(alternative).is_empty()),
    }
}

/// The texts that one alternative lists, if it lists them.
pub(super) fn words(alternative: &Value) -> Vec<&str> {
    if let Some(word) = alternative.get("const").and_then(Value::as_str) {
        return vec![word];
    }
    let list = alternative.get("enum").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn is_any(alternative: &Value) -> bool {
    *alternative == Value::Bool(true) || ["type", "const", "enum"].iter().all(|word| alternative.get(word).is_none())
}

struct Converter<'run, 'node> {
    schema: &'run Value,
    refusals: &'run mut Refusals<'node>,
    path: Vec<String>,
}

impl Converter<'_, '_> {
    fn node(&mut self, node: &Node, schema: &Value, line: u64) -> Value {
        let root = self.schema;
        let alternatives: Vec<Value> = alternatives(root, schema).into_iter().cloned().collect();
        let find = |kind: &str| alternatives.iter().find(|alternative| takes(alternative, kind));
        if let (Content::Text(text), true) = (&node.content, alternatives.iter().any(is_secret)) {
            self.refusals.hide(text);
        }
        match &node.content {
            Content::Map(entries) => match find("object") {
                Some(object) => self.map(entries, object, line),
                None => self.mismatch(node, &alternatives, line),
            },
            Content::List(items) => match find("array") {
                Some(array) => self.list(items, array),
                None => self.mismatch(node, &alternatives, line),
            },
            Content::Null => match (find("null"), find("object")) {
                (Some(_), _) => Value::Null,
                // `stdout:` means `stdout: {}`.
                (None, Some(object)) => self.map(&[], object, line),
                (None, None) => self.mismatch(node, &alternatives, line),
            },
            Content::Bool(value) => match find("boolean") {
                Some(_) => Value::Bool(*value),
                None => self.mismatch(node, &alternatives, line),
            },
            Content::Number(number) => self.number(node, number, &alternatives, line),
            Content::Text(text) => self.text(node, text, &alternatives, line),
        }
    }

    fn map(&mut self, entries: &[Entry], object: &Value, line: u64) -> Value {
        let none = Map::new();
        let known = object.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let others = object.get("additionalProperties");
        let mut result = Map::new();
        for entry in entries {
            self.path.push(entry.key.clone());
            match (known.get(&entry.key), others) {
                (Some(schema), _) => {
                    let value = self.node(&entry.value, schema, entry.line);
                    result.insert(entry.key.clone(), value);
                }
                (None, Some(Value::Bool(false))) => {
                    let known: Vec<&str> = known.keys().map(String::as_str).collect();
                    let message = format!("unknown key; {}", suggestion(&entry.key, &known));
                    self.refusals.add_on(entry.line, self.path.clone(), message);
                }
                (None, others) => {
                    let value = self.node(&entry.value, others.unwrap_or(&Value::Bool(true)), entry.line);
                    result.insert(entry.key.clone(), value);
                }
            }
            self.path.pop();
        }
        let required = object.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            // A misspelt key was refused already, with this one as its suggestion.
            let is_misspelt =
                || entries.iter().any(|entry| !known.contains_key(&entry.key) && nearest(&entry.key, [key]).is_some());
            if !entries.iter().any(|entry| entry.key == key) && !is_misspelt() {
                let path = self.path.iter().cloned().chain([key.to_owned()]).collect();
                self.refusals.add_on(line, path, "this key is missing");
            }
        }
        Value::Object(result)
    }

    fn list(&mut self, items: &[Node], array: &Value) -> Value {
        let any = Value::Bool(true);
        let schema = array.get("items").unwrap_or(&any);
        let mut result = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            self.path.push(index.to_string());
            result.push(self.node(item, schema, item.line));
            self.path.pop();
        }
        Value::Array(result)
    }

    fn number(&mut self, node: &Node, number: &serde_json::Number, alternatives: &[Value], line: u64) -> Value {
        let is_whole = number.is_i64() || number.is_u64();
        let Some(alternative) = alternatives
            .iter()
            .find(|alternative| takes(alternative, "number") || (is_whole && takes(alternative, "integer")))
        else {
            return self.mismatch(node, alternatives, line);
        };
        let value = number.as_f64().unwrap_or_default();
        let bound = |word| alternative.get(word).and_then(Value::as_f64);
        if bound("minimum").is_some_and(|minimum| value < minimum) {
            let least = &alternative["minimum"];
            self.refusals.add_on(line, self.path.clone(), format!("must be at least {least}"));
        }
        if bound("maximum").is_some_and(|maximum| value > maximum) {
            let most = &alternative["maximum"];
            self.refusals.add_on(line, self.path.clone(), format!("must be at most {most}"));
        }
        Value::Number(number.clone())
    }

    fn text(&mut self, node: &Node, text: &str, alternatives: &[Value], line: u64) -> Value {
        let words: Vec<&str> = alternatives.iter().flat_map(words).collect();
        let is_free =
            alternatives.iter().any(|alternative| takes(alternative, "string") && self::words(alternative).is_empty());
        if is_free || words.contains(&text) {
            return Value::String(text.to_owned());
        }
        if node.is_from_environment
            && let Some(value) = infer(text, alternatives)
        {
            return match &value {
                Value::Number(number) => self.number(node, number, alternatives, line),
                _ => value,
            };
        }
        if words.is_empty() {
            return self.mismatch(node, alternatives, line);
        }
        let written = if node.is_from_environment { String::new() } else { format!(" \"{text}\"") };
        let message = format!("unknown value{written}; {}", suggestion(text, &words));
        self.refusals.add_on(line, self.path.clone(), message);
        Value::Null
    }

    fn mismatch(&mut self, node: &Node, alternatives: &[Value], line: u64) -> Value {
        let mut expected: Vec<&str> = Vec::new();
        for (kind, words) in [
            ("object", "a section of keys"),
            ("array", "a list"),
            ("string", "text"),
            ("integer", "a whole number"),
            ("number", "a number"),
            ("boolean", "true or false"),
        ] {
            if alternatives.iter().any(|alternative| takes(alternative, kind)) {
                expected.push(words);
            }
        }
        let found = node.describe();
        let quotes = match node.content {
            Content::Bool(_) | Content::Number(_) if expected == ["text"] => "; put it in quotes",
            _ => "",
        };
        let message = format!("expected {}, found {found}{quotes}", expected.join(" or "));
        self.refusals.add_on(line, self.path.clone(), message);
        Value::Null
    }
}

fn is_secret(alternative: &Value) -> bool {
    alternative.get("writeOnly") == Some(&Value::Bool(true))
}

/// What a variable held, as the type that is asked for.
fn infer(text: &str, alternatives: &[Value]) -> Option<Value> {
    let asks = |kind| alternatives.iter().any(|alternative| takes(alternative, kind));
    let value: Value = serde_json::from_str(text.trim()).ok()?;
    match &value {
        Value::Bool(_) if asks("boolean") => Some(value),
        Value::Number(number) if asks("number") || (asks("integer") && !number.is_f64()) => Some(value),
        _ => None,
    }
}
