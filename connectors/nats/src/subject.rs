//! Subjects: a template filled for one entity, and which subjects a stream takes.
//!
//! A part of the entity ref fills exactly one token or a piece of one: every byte that is no ASCII letter, digit, hyphen or
//! underscore becomes `~` and two hexadecimal digits, so `a.b` is `a~2Eb`. The tilde itself is escaped too, so that two
//! entities never share a subject by accident, and no name can reach another level or a wildcard. Knows nothing of connections.

use std::borrow::Cow;

use catalog_bridge_api::{EntityRef, Template};

/// The subject of an entity.
pub(crate) fn subject(template: &Template, entity_ref: &EntityRef) -> String {
    template.render(entity_ref, escape)
}

/// Makes a part of an entity ref safe inside a token.
fn escape(part: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if part.bytes().all(is_plain) {
        return part.into();
    }
    let mut escaped = String::with_capacity(part.len() + 8);
    for byte in part.bytes() {
        if is_plain(byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("~{byte:02X}"));
        }
    }
    escaped.into()
}

/// The narrowest filter that takes every subject of the template.
pub(crate) fn filter(template: &Template) -> String {
    let tokens: Vec<_> =
        template.as_str().split('.').map(|token| if token.contains('{') { "*" } else { token }).collect();
    tokens.join(".")
}

/// Whether a stream with this filter takes every subject of the template.
pub(crate) fn covers(stream_filter: &str, template: &Template) -> bool {
    let wanted = filter(template);
    let mut wanted = wanted.split('.');
    for token in stream_filter.split('.') {
        match (token, wanted.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(wanted)) if token == wanted => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

/// What is wrong with a template's fixed text.
pub(crate) fn problem(template: &Template) -> Option<&'static str> {
    let text = template.as_str();
    if text.split('.').any(str::is_empty) {
        return Some("has an empty token: write words separated by single dots");
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'*' | b'>')) {
        return Some("is made of printable ASCII without spaces, * and >");
    }
    if text.starts_with(['$', '_']) {
        return Some("must not begin with $ or _: those subjects are the server's own");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).expect("valid")
    }

    #[test]
    fn names_stay_within_their_token() {
        let entity_ref = EntityRef::parse("component:default/a.b*c>d e~f").expect("valid");

        let subject = subject(&template("catalog.{kind}.{namespace}.{name}"), &entity_ref);

        assert_eq!(subject, "catalog.component.default.a~2Eb~2Ac~3Ed~20e~7Ef");
    }

    #[test]
    fn characters_beyond_ascii_are_escaped_by_their_bytes() {
        assert_eq!(escape("ü"), "~C3~BC");
    }

    #[test]
    fn a_stream_must_take_every_subject_of_the_template() {
        let template = template("catalog.{kind}.x-{name}");

        for filter in ["catalog.>", ">", "catalog.*.*", "*.*.*"] {
            assert!(covers(filter, &template), "{filter}");
        }
        for filter in ["catalog.*", "catalog.component.*", "catalog", "other.>", "catalog.*.*.*", "catalog.*.*.>"] {
            assert!(!covers(filter, &template), "{filter}");
        }
    }

    #[test]
    fn templates_with_wildcards_or_holes_are_refused() {
        for bad in ["catalog..{name}", ".a", "a.", "a b", "a.*", "a.>", "$JS.API", "_INBOX.a"] {
            assert!(problem(&template(bad)).is_some(), "{bad}");
        }
        assert_eq!(problem(&template("catalog.{kind}.{namespace}.{name}")), None);
    }
}
