use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// The canonical name of an entity, `kind:namespace/name`, always lower case (as Backstage's `stringifyEntityRef`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct EntityRef(#[schemars(with = "String")] Arc<str>);

/// Why a text is no entity ref.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no entity ref: expected kind:namespace/name, {problem}")]
pub struct InvalidEntityRef {
    text: String,
    problem: &'static str,
}

/// Longest accepted ref in bytes; Backstage's own limit is 63 + 1 + 63 + 1 + 63.
const LENGTH_MAX: usize = 1024;

impl EntityRef {
    /// Parses `[kind:][namespace/]name`; the kind must be there, the namespace defaults to `default`. Upper case is
    /// lowered, as Backstage does.
    pub fn parse(text: &str) -> Result<Self, InvalidEntityRef> {
        let fail = |problem| Err(InvalidEntityRef { text: text.chars().take(200).collect(), problem });
        let Some((kind, rest)) = text.split_once(':') else { return fail("the kind is missing") };
        let (namespace, name) = rest.split_once('/').unwrap_or(("default", rest));
        Self::from_parts(kind, namespace, name).or_else(|error| fail(error.problem))
    }

    /// Builds the ref of an entity's own kind, namespace and name.
    pub fn from_parts(kind: &str, namespace: &str, name: &str) -> Result<Self, InvalidEntityRef> {
        let text = format!("{kind}:{namespace}/{name}").to_lowercase();
        let problem = if kind.is_empty() {
            "the kind is empty"
        } else if namespace.is_empty() {
            "the namespace is empty"
        } else if name.is_empty() {
            "the name is empty"
        } else if kind.contains('/') || namespace.contains([':', '/']) || kind.contains(':') {
            "kind and namespace hold no : or /"
        } else if text.len() > LENGTH_MAX {
            "it is longer than 1024 bytes"
        } else if text.chars().any(char::is_control) {
            "it holds a control character"
        } else {
            return Ok(EntityRef(text.into()));
        };
        Err(InvalidEntityRef { text: text.chars().take(200).collect(), problem })
    }

    /// The whole ref.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind, such as `component`.
    pub fn kind(&self) -> &str {
        self.parts().0
    }

    /// The namespace, such as `default`.
    pub fn namespace(&self) -> &str {
        self.parts().1
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.parts().2
    }

    fn parts(&self) -> (&str, &str, &str) {
        let (kind, rest) = self.0.split_once(':').expect("checked when parsed");
        let (namespace, name) = rest.split_once('/').expect("checked when parsed");
        (kind, namespace, name)
    }
}

impl fmt::Display for EntityRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for EntityRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, formatter)
    }
}

impl<'de> Deserialize<'de> for EntityRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        EntityRef::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: Option<&str>) {
        assert_eq!(EntityRef::parse(input).ok().as_ref().map(EntityRef::as_str), expected, "{input}");
    }

    #[test]
    fn refs_are_lowered_and_completed() {
        check("Component:Default/My.Service-1_x", Some("component:default/my.service-1_x"));
        check("api:pets", Some("api:default/pets"));
        check("component:default/a/b", Some("component:default/a/b"));
        for bad in ["", "a", "a:", "a:/b", ":b/c", "a:b/", "a:n:s/x", "a:default/x\ny"] {
            check(bad, None);
        }
    }
}
