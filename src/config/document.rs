//! A YAML file as a tree that knows the line of every key and value.
//!
//! Knows nothing of what the keys mean. Sizes are bounded by the parser's own budget (depth, nodes, aliases).

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::refusal::Refusal;

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Node {
    /// Counted from 1; where the value begins.
    pub(super) line: u64,
    pub(super) content: Content,
    /// It came from an environment variable: never shown, and a number or a boolean where one is asked for.
    pub(super) is_from_environment: bool,
}

/// What YAML's core schema knows.
#[derive(Clone)]
pub(super) enum Content {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, keys unique.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u64,
    pub(super) value: Node,
}

impl Node {
    /// Parses a file's text.
    pub(super) fn parse(text: &str) -> Result<Node, Refusal> {
        // Snippets would show lines of the file, and with them secrets.
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let parsed: Result<Spanned<Content>, _> = serde_saphyr::from_str_with_options(text, options);
        match parsed {
            Ok(root) => Ok(root.into()),
            Err(error) => Err(refuse(&error)),
        }
    }

    /// The value of a key, in a map.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The line of the deepest part of the path that is there.
    pub(super) fn line_of(&self, path: &[String]) -> u64 {
        let Some((first, rest)) = path.split_first() else { return self.line };
        match &self.content {
            Content::Map(_) => match self.get(first) {
                // A map that begins on the next line is named by its key.
                Some(entry) if rest.is_empty() || !entry.value.has(&rest[0]) => entry.line,
                Some(entry) => entry.value.line_of(rest),
                None => self.line,
            },
            Content::List(items) => first
                .parse()
                .ok()
                .and_then(|index: usize| items.get(index))
                .map_or(self.line, |item| item.line_of(rest)),
            _ => self.line,
        }
    }

    fn has(&self, key: &str) -> bool {
        match &self.content {
            Content::Map(_) => self.get(key).is_some(),
            Content::List(items) => key.parse().is_ok_and(|index: usize| index < items.len()),
            _ => false,
        }
    }

    /// What it is, for a person; never its value.
    pub(super) fn describe(&self) -> &'static str {
        match self.content {
            Content::Null => "nothing",
            Content::Bool(_) => "true or false",
            Content::Number(_) => "a number",
            Content::Text(_) => "text",
            Content::List(_) => "a list",
            Content::Map(_) => "a section of keys",
        }
    }
}

/// The parser's words without what the file holds: an error text may quote a value.
fn refuse(error: &serde_saphyr::Error) -> Refusal {
    let line = error.location().map_or(1, |location| location.line().max(1));
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error.without_snippet() {
        let key = key.clone().unwrap_or_default();
        return Refusal::new(line, vec![key], "the key stands here twice; remove one of the two");
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Refusal::new(line, Vec::new(), format!("this is no YAML: {first}"))
}

impl From<Spanned<Content>> for Node {
    fn from(spanned: Spanned<Content>) -> Node {
        Node { line: spanned.referenced.line(), content: spanned.value, is_from_environment: false }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        serde_json::Number::from_f64(value).map(Content::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element::<Spanned<Content>>()? {
            items.push(item.into());
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value: Spanned<Content> = map.next_value()?;
            entries.push(Entry { key: key.value, line: key.referenced.line(), value: value.into() });
        }
        Ok(Content::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn every_key_and_value_knows_its_line() {
        let root = Node::parse("a:\n  b:\n    - 1\n    - c: x\n# note\nd: { e: 5 }\n").expect("valid");

        for (keys, line) in [
            (vec!["a"], 1),
            (vec!["a", "b"], 2),
            (vec!["a", "b", "1"], 4),
            (vec!["a", "b", "1", "c"], 4),
            (vec!["a", "missing"], 1),
            (vec!["d", "e"], 6),
        ] {
            assert_eq!(root.line_of(&path(&keys)), line, "{keys:?}");
        }
    }

    #[test]
    fn words_that_yaml_1_1_took_for_booleans_are_text() {
        let root = Node::parse("a: off\nb: no\nc: true\n").expect("valid");

        let is_text = |key| matches!(root.get(key).map(|entry| &entry.value.content), Some(Content::Text(_)));
        assert!(is_text("a") && is_text("b") && !is_text("c"));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_where_it_stands_again() {
        let refusal = Node::parse("a: 1\nb: 2\na: 3\n").err().expect("refused");

        assert_eq!(refusal.to_string(), "3: a: the key stands here twice; remove one of the two");
    }

    #[test]
    fn an_error_shows_nothing_of_the_file() {
        let refusal = Node::parse("a: 1\npassword: \"hunter2\n").err().expect("refused").to_string();

        assert!(!refusal.contains("hunter2"), "{refusal}");
    }
}
