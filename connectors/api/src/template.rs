use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::EntityRef;

/// A destination name with places for parts of the entity ref: `catalog.{kind}.{namespace}.{name}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Kind,
    Namespace,
    Name,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no template: {problem}; the places are {{kind}}, {{namespace}} and {{name}}")]
pub struct InvalidTemplate {
    text: String,
    problem: String,
}

impl Template {
    /// Compiles a text.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let fail = |problem: String| Err(InvalidTemplate { text: text.to_owned(), problem });
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            if rest.as_bytes()[open] == b'}' {
                return fail("a } without its {".to_owned());
            }
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            let Some(close) = rest[open..].find('}') else { return fail("a { without its }".to_owned()) };
            parts.push(match &rest[open + 1..open + close] {
                "kind" => Part::Kind,
                "namespace" => Part::Namespace,
                "name" => Part::Name,
                unknown => return fail(format!("unknown place {{{unknown}}}")),
            });
            rest = &rest[open + close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Template { text: text.to_owned(), parts })
    }

    /// The name for one entity; `escape` makes a part safe for the protocol (fixed text is taken as it is).
    pub fn render<'a>(&self, entity_ref: &'a EntityRef, escape: impl Fn(&'a str) -> Cow<'a, str>) -> String {
        let mut name = String::with_capacity(self.text.len() + entity_ref.as_str().len());
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Kind => name.push_str(&escape(entity_ref.kind())),
                Part::Namespace => name.push_str(&escape(entity_ref.namespace())),
                Part::Name => name.push_str(&escape(entity_ref.name())),
            }
        }
        name
    }

    /// The one name of every entity, when the template has no place.
    pub fn fixed(&self) -> Option<&str> {
        self.parts.iter().all(|part| matches!(part, Part::Text(_))).then_some(&self.text)
    }

    /// The template as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(formatter)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Template::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "a name with the places {kind}, {namespace} and {name}" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_and_escaped() {
        let template = Template::parse("catalog.{kind}.{name}").expect("valid");
        let entity_ref = EntityRef::parse("component:default/a.b").expect("valid");

        let name = template.render(&entity_ref, |part| part.replace('.', "~2E").into());

        assert_eq!(name, "catalog.component.a~2Eb");
        assert_eq!(template.fixed(), None);
        assert_eq!(Template::parse("plain").expect("valid").fixed(), Some("plain"));
    }

    #[test]
    fn unknown_places_and_stray_braces_are_refused() {
        for bad in ["{kidn}", "{kind", "kind}", "{}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
