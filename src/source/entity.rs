//! Reads what the log must know of an entity from its JSON: the ref and the uid.
//!
//! Invariant: any text, however hostile, is answered in bounded memory and stack. Depth is counted over the bytes before
//! anything is parsed. The text itself is kept as it came. Knows nothing of where it came from.

use catalog_bridge_api::{EntityRef, InvalidEntityRef, JsonText};
use serde::Deserialize;

/// The largest entity, in bytes; as much as one append may hold.
pub const ENTITY_BYTES_MAX: usize = crate::store::APPEND_BYTES_MAX;
/// How deep an entity may be nested: one less than the depth at which serde_json, which reads it later, gives up.
pub const ENTITY_DEPTH_MAX: usize = 127;

/// An entity whose name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedEntity {
    /// Built from `kind`, `metadata.namespace` (default: `default`) and `metadata.name`.
    pub entity_ref: EntityRef,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// The text, byte for byte.
    pub entity: JsonText,
}

/// Why a text is no entity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntityError {
    /// Larger than the log takes.
    #[error("the entity has {bytes} bytes, more than {ENTITY_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Nested deeper than the log takes.
    #[error("the entity is nested deeper than {ENTITY_DEPTH_MAX} levels")]
    TooDeep,
    /// Not JSON, or not in the shape of an entity.
    #[error("not an entity: {0}")]
    Malformed(String),
    /// A string that is no Unicode text.
    #[error("the entity holds half of a surrogate pair (\\u{0}), which is no Unicode text")]
    LoneSurrogate(String),
    /// A field is missing or empty.
    #[error("not an entity: {0} is missing or empty")]
    Missing(&'static str),
    /// The names do not make a ref.
    #[error(transparent)]
    Ref(#[from] InvalidEntityRef),
}

#[derive(Deserialize)]
struct Envelope {
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
}

/// Reads the names of an entity.
pub fn parse_entity(text: &str) -> Result<ParsedEntity, EntityError> {
    if text.len() > ENTITY_BYTES_MAX {
        return Err(EntityError::TooLarge { bytes: text.len() });
    }
    check_structure(text)?;
    let envelope: Envelope = serde_json::from_str(text).map_err(|error| EntityError::Malformed(error.to_string()))?;
    let filled = |value: Option<String>| value.filter(|value| !value.is_empty());
    let kind = filled(envelope.kind).ok_or(EntityError::Missing("kind"))?;
    let metadata = envelope.metadata.ok_or(EntityError::Missing("metadata"))?;
    let name = filled(metadata.name).ok_or(EntityError::Missing("metadata.name"))?;
    let namespace = filled(metadata.namespace).unwrap_or_else(|| "default".to_owned());
    Ok(ParsedEntity {
        entity_ref: EntityRef::from_parts(&kind, &namespace, &name)?,
        uid: filled(metadata.uid),
        entity: JsonText::from_trusted(text),
    })
}

/// Counts the depth and looks at the escapes, without recursion. Whether it is JSON at all is the parser's business.
fn check_structure(text: &str) -> Result<(), EntityError> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (in_string, byte) {
            (true, b'\\') => at += escape_length(bytes, at)? - 1,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > ENTITY_DEPTH_MAX {
            return Err(EntityError::TooDeep);
        }
        at += 1;
    }
    Ok(())
}

/// The length of the escape (or surrogate pair) that begins here.
fn escape_length(bytes: &[u8], at: usize) -> Result<usize, EntityError> {
    let Some(first) = code_unit(bytes, at) else { return Ok(2) };
    let lone = || Err(EntityError::LoneSurrogate(format!("{first:04x}")));
    match first {
        0xD800..=0xDBFF => match code_unit(bytes, at + 6) {
            Some(0xDC00..=0xDFFF) => Ok(12),
            _ => lone(),
        },
        0xDC00..=0xDFFF => lone(),
        _ => Ok(6),
    }
}

fn code_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?;
    let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse_entity(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn names_are_read_and_the_text_is_kept() {
        let text = r#"{ "kind":"Component", "metadata": {"name":"A", "uid":"u1", "x":[{}]}, "spec": {"\"{[": 1e999} }"#;

        let parsed = parse_entity(text).expect("an entity");

        assert_eq!(parsed.entity_ref.as_str(), "component:default/a");
        assert_eq!(parsed.uid.as_deref(), Some("u1"));
        assert_eq!(parsed.entity.as_str(), text);
    }

    #[test]
    fn a_refusal_names_the_field() {
        assert_eq!(refused(r#"{"metadata":{"name":"a"}}"#), "not an entity: kind is missing or empty");
        assert_eq!(
            refused(r#"{"kind":"A","metadata":{"name":""}}"#),
            "not an entity: metadata.name is missing or empty"
        );
        assert_eq!(refused(r#"{"kind":"A"}"#), "not an entity: metadata is missing or empty");
        for text in ["", "[]", "7", "null", "{", r#"{"kind":"A","metadata":{"name":3}}"#, r#"{"kind":"A"} x"#] {
            assert!(refused(text).starts_with("not an entity: "), "{text}");
        }
        assert!(refused(r#"{"kind":"a:b","metadata":{"name":"a"}}"#).contains("kind and namespace hold no"));
    }

    /// A nesting bomb is a clear error and never a stack overflow.
    #[test]
    fn depth_is_bounded_and_what_passes_can_be_read() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"kind":"A","metadata":{{"name":"a"}},"spec":{open}{close}}}"#)
        };

        assert!(parse_entity(&nested(ENTITY_DEPTH_MAX - 1)).is_ok());
        assert!(serde_json::from_str::<serde_json::Value>(&nested(ENTITY_DEPTH_MAX - 1)).is_ok());
        assert_eq!(parse_entity(&nested(ENTITY_DEPTH_MAX)), Err(EntityError::TooDeep));
        assert_eq!(parse_entity(&nested(200_000)), Err(EntityError::TooDeep));
        assert_eq!(parse_entity(&r#"{"a":"#.repeat(200_000)), Err(EntityError::TooDeep));
    }

    #[test]
    fn size_is_bounded() {
        let text = format!(r#"{{"kind":"A","metadata":{{"name":"a"}},"spec":"{}"}}"#, "x".repeat(ENTITY_BYTES_MAX));
        assert_eq!(parse_entity(&text), Err(EntityError::TooLarge { bytes: text.len() }));
    }

    #[test]
    fn strings_must_be_unicode() {
        let with = |value: &str| format!(r#"{{"kind":"A","metadata":{{"name":"a","title":"{value}"}}}}"#);

        for good in [r"\ud83d\ude00", r"\\ud800", r"\u00e4", r"\u0000"] {
            assert!(parse_entity(&with(good)).is_ok(), "{good}");
        }
        for bad in [r"\ud83d", r"\ude00", r"\ud83dx", r"\ud83d\u0041"] {
            assert!(matches!(parse_entity(&with(bad)), Err(EntityError::LoneSurrogate(_))), "{bad}");
        }
    }
}
