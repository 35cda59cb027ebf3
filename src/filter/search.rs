//! Which conditions an entity meets, by the rules of Backstage's search index.
//!
//! Backstage writes each entity into an index of (key, value) rows and filters by these. The rules, as they are observed
//! (catalog-backend 4.0): keys are dotted paths; scalars are rows with their text as value; an item of an array is a row of
//! the array's own key, and a text item also makes a row `key.item = true`; empty arrays and objects make no row; null, and
//! a value longer than 200 characters, is a row without value, which only a bare key matches; a key longer than 200 is no
//! row. `relations` gives `relations.<type> = <targetRef>`; `status`, `attachments` and `metadata.etag` give nothing;
//! `metadata.name`, `metadata.namespace` and `metadata.uid` always exist, and a missing namespace is also `default`.
//!
//! The rows are not built: the text is read once, what no condition asks for is skipped.

use std::borrow::Cow;
use std::fmt;

use catalog_bridge_api::JsonText;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Condition;

/// Longest indexed key and value, in UTF-16 units as JavaScript counts them.
const LENGTH_MAX: usize = 200;

/// The conditions that the entity meets, by bit. Of a text that is no JSON: those met before the error.
pub(super) fn matched(conditions: &[Condition], entity: &JsonText) -> u128 {
    let mut search = Search { conditions, path: String::new(), matched: 0, has_namespace: false };
    let mut deserializer = serde_json::Deserializer::from_str(entity.as_str());
    // Bodies were checked when they were appended; an error here could only be a nesting that the log refuses.
    let _ = Value { search: &mut search }.deserialize(&mut deserializer);
    search.finish();
    search.matched
}

struct Search<'filter> {
    conditions: &'filter [Condition],
    /// Where we are, lower case.
    path: String,
    matched: u128,
    has_namespace: bool,
}

impl Search<'_> {
    /// A row: the key is the path.
    fn row(&mut self, value: Option<&str>) {
        if self.path == "metadata.namespace" && value.is_some_and(|value| !value.is_empty()) {
            self.has_namespace = true;
        }
        for (bit, condition) in self.conditions.iter().enumerate() {
            if condition.key != self.path || is_too_long(&self.path) {
                continue;
            }
            let is_met = match (&condition.values, value) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(values), Some(value)) => {
                    let value = lower(value);
                    !is_too_long(&value) && values.iter().any(|wanted| *wanted == value)
                }
            };
            if is_met {
                self.matched |= 1 << bit;
            }
        }
    }

    /// The row that a text item of an array makes beside its own.
    fn item_row(&mut self, item: &str) {
        let outer = self.enter(item);
        self.row(Some("true"));
        self.path.truncate(outer);
    }

    /// Rows that exist for every entity.
    fn finish(&mut self) {
        for (key, value) in [("metadata.name", None), ("metadata.uid", None), ("metadata.namespace", Some("default"))] {
            key.clone_into(&mut self.path);
            self.row(None);
            if value.is_some() && !self.has_namespace {
                self.row(value);
            }
        }
    }

    /// Goes to a key; the answer leads back by `path.truncate`.
    fn enter(&mut self, key: &str) -> usize {
        let outer = self.path.len();
        if outer > 0 {
            self.path.push('.');
        }
        self.path.push_str(&lower(key));
        outer
    }

    /// Whether a condition asks for this path or something in it.
    fn is_wanted(&self) -> bool {
        let is_skipped = matches!(self.path.as_str(), "status" | "attachments" | "metadata.etag");
        !is_skipped
            && self.conditions.iter().any(|condition| {
                let rest = condition.key.strip_prefix(self.path.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
            || self.path == "metadata.namespace"
    }
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.to_lowercase())
    }
}

fn is_too_long(text: &str) -> bool {
    text.len() > LENGTH_MAX && text.encode_utf16().count() > LENGTH_MAX
}

/// A value at the search's path.
struct Value<'search, 'filter> {
    search: &'search mut Search<'filter>,
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = Option<String>;

    /// Answers a text's own text, which an array needs for its item rows.
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        self.search.row(None);
        Ok(None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        self.search.row(Some(if value { "true" } else { "false" }));
        Ok(None)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        self.search.row(Some(&value.to_string()));
        Ok(None)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        self.search.row(Some(&value.to_string()));
        Ok(None)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        // As JavaScript writes it, for all but very large and very small numbers: 1.0 is "1", and -0 is "0".
        self.search.row(Some(&(value + 0.0).to_string()));
        Ok(None)
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        self.search.row(Some(value));
        Ok(Some(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        if self.search.path == "relations" {
            while items.next_element_seed(Relation { search: &mut *self.search })?.is_some() {}
            return Ok(None);
        }
        while let Some(item) = items.next_element_seed(Value { search: &mut *self.search })? {
            if let Some(text) = item {
                self.search.item_row(&text);
            }
        }
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while let Some(key) = entries.next_key::<Cow<'_, str>>()? {
            let outer = self.search.enter(&key);
            if self.search.is_wanted() {
                entries.next_value_seed(Value { search: &mut *self.search })?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
            self.search.path.truncate(outer);
        }
        Ok(None)
    }
}

/// One item of `relations`.
struct Relation<'search, 'filter> {
    search: &'search mut Search<'filter>,
}

impl<'de> DeserializeSeed<'de> for Relation<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields<'text> {
            #[serde(rename = "type", borrow)]
            relation_type: Option<Cow<'text, str>>,
            #[serde(borrow)]
            target_ref: Option<Cow<'text, str>>,
        }

        let fields = Fields::deserialize(deserializer)?;
        if let Some(relation_type) = fields.relation_type {
            let outer = self.search.enter(&relation_type);
            self.search.row(fields.target_ref.as_deref());
            self.search.path.truncate(outer);
        }
        Ok(())
    }
}
