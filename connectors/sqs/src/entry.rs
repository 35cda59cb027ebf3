//! A message as an entry of a request.
//!
//! Keeps P6: an entry depends on the message alone, so that every repetition is the same. Keeps the service's rules for ids, characters and
//! sizes on our side: a refusal would come in the middle of a request whose other entries are stored.

use std::borrow::Cow;
use std::fmt::Write;

use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, EntityRef, Message, Ordering};
use sha2::{Digest, Sha256};

/// What the attributes of a structured message may come to; those of the binary encoding count as part of the message.
pub(crate) const ATTRIBUTE_BYTES_MAX: usize = 512;
/// The service's limit.
const ATTRIBUTES_MAX: usize = 10;
/// The service's limit for message group ids and deduplication ids.
const ID_BYTES_MAX: usize = 128;
/// The group of `ordering: stream`.
const STREAM_GROUP: &str = "catalog";

/// The entry for a message, or why the service would refuse it.
pub(crate) fn entry(
    message: &Message,
    ordering: Ordering,
    bytes_max: usize,
) -> Result<(SendMessageBatchRequestEntry, usize), String> {
    let body = std::str::from_utf8(&message.body).map_err(|_| "its body is no text".to_owned())?;
    let body = allowed(body);
    let attributes = attributes(message);
    let attribute_bytes: usize = attributes.iter().map(|(name, value)| name.len() + TYPE.len() + value.len()).sum();
    let bytes = body.len() + attribute_bytes;
    if bytes > bytes_max {
        return Err(format!("it has {bytes} bytes, more than message_bytes_max ({bytes_max})"));
    }
    let group = match ordering {
        Ordering::Entity => group(&message.entity_ref),
        Ordering::Stream => Cow::Borrowed(STREAM_GROUP),
    };
    let mut entry = SendMessageBatchRequestEntry::builder()
        .id(message.offset().to_string())
        .message_body(body)
        .message_group_id(group)
        .message_deduplication_id(message.id.to_string());
    for (name, value) in attributes {
        let value = MessageAttributeValue::builder().data_type(TYPE).string_value(value);
        entry = entry.message_attributes(name, value.build().expect("a data type is set"));
    }
    Ok((entry.build().expect("id and body are set"), bytes))
}

const TYPE: &str = "String";

/// The entity ref where the service takes it as an id; else a hash of it, which no ref looks like.
fn group(entity_ref: &EntityRef) -> Cow<'_, str> {
    let text = entity_ref.as_str();
    if text.len() <= ID_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Cow::Borrowed(text);
    }
    let mut hashed = "h:".to_owned();
    for byte in Sha256::digest(text) {
        let _ = write!(hashed, "{byte:02x}");
    }
    Cow::Owned(hashed)
}

/// JSON allows two characters that the service does not take; in JSON they stand inside of strings only.
fn allowed(text: &str) -> Cow<'_, str> {
    if !text.contains(['\u{fffe}', '\u{ffff}']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff"))
}

/// At most ten, as the service takes no more. Of the binary encoding `partitionkey` and `sequence` are left out, which the
/// group and the offset say, and the content type beside a `dataref`.
fn attributes(message: &Message) -> Vec<(Cow<'static, str>, String)> {
    let mut attributes: Vec<(Cow<'static, str>, String)> = vec![
        (BRIDGE_LOG_ID.into(), message.id.log_id.to_string()),
        (BRIDGE_GENERATION.into(), message.id.generation.to_string()),
        (BRIDGE_OFFSET.into(), message.offset().to_string()),
    ];
    if message.attributes.is_empty() {
        attributes.push(("event-type".into(), message.event_type.as_str().to_owned()));
        attributes.push(("kind".into(), attribute_value(message.entity_ref.kind())));
    }
    for (name, value) in &message.attributes {
        if !matches!(*name, "partitionkey" | "sequence") {
            attributes.push((format!("ce-{name}").into(), attribute_value(value)));
        }
    }
    attributes.push(("content-type".into(), message.content_type.to_owned()));
    attributes.truncate(ATTRIBUTES_MAX);
    attributes
}

/// No escape is known to readers of attributes; the body says it exactly.
fn attribute_value(text: &str) -> String {
    text.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{EventType, MessageId};

    use super::*;

    fn message(entity_ref: &str, body: &str) -> Message {
        Message {
            id: MessageId { log_id: Default::default(), generation: 3, offset: 42.into() },
            entity_ref: EntityRef::parse(entity_ref).expect("a ref"),
            event_type: EventType::Updated,
            attributes: Vec::new(),
            content_type: "application/cloudevents+json",
            body: body.to_owned().into(),
            is_reference: false,
        }
    }

    fn group_of(name: &str) -> String {
        let (entry, _) = entry(&message(name, "{}"), Ordering::Entity, 10_000).expect("an entry");
        entry.message_group_id.expect("a group")
    }

    #[test]
    fn a_group_is_the_ref_or_a_hash_of_it() {
        assert_eq!(group_of("component:default/a"), "component:default/a");
        let longest = format!("component:default/{}", "n".repeat(110));
        assert_eq!(group_of(&longest), longest);

        for hashed in [format!("{longest}n"), "component:default/ü".to_owned(), "component:default/a b".to_owned()] {
            let group = group_of(&hashed);
            assert!(group.len() == 66 && group.starts_with("h:"), "{group}");
        }
        assert_ne!(group_of("component:default/ü"), group_of("component:default/ö"));
        let (entry, _) = entry(&message("api:default/a", "{}"), Ordering::Stream, 10_000).expect("an entry");
        assert_eq!(entry.message_group_id.as_deref(), Some("catalog"));
        assert_eq!(entry.message_deduplication_id.as_deref(), Some("00000000.3.42"));
    }

    #[test]
    fn characters_that_the_service_refuses_are_escaped() {
        let text = "{\"a\":\"\u{fffe}\\\\\u{ffff}🦀\"}";

        let (entry, _) = entry(&message("component:default/a", text), Ordering::Entity, 10_000).expect("an entry");

        assert!(!entry.message_body.contains(['\u{fffe}', '\u{ffff}']));
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parsed(&entry.message_body), parsed(text));
    }

    #[test]
    fn never_more_attributes_than_the_service_takes_nor_more_bytes_than_counted() {
        let names = ["specversion", "id", "source", "type", "subject", "time", "partitionkey", "sequence", "dataref"];
        for count in 0..=names.len() {
            let mut message = message("component:default/\u{ffff}", "{}");
            message.attributes = names[..count].iter().map(|name| (*name, "v\u{fffe}".repeat(30))).collect();

            let (entry, bytes) = entry(&message, Ordering::Entity, 10_000).expect("an entry");

            let attributes = entry.message_attributes.expect("attributes");
            assert!(attributes.len() <= 10 && attributes.contains_key(BRIDGE_OFFSET), "{attributes:?}");
            assert_eq!(attributes.contains_key("ce-dataref"), count == names.len());
            assert!(attributes.values().all(|value| !value.string_value().unwrap_or_default().contains('\u{fffe}')));
            assert!(bytes <= message.size_bytes() + ATTRIBUTE_BYTES_MAX, "{bytes}");
        }
    }

    #[test]
    fn a_message_that_the_escapes_made_too_large_is_refused_here() {
        let body = format!("\"{}\"", "\u{ffff}".repeat(3_000));
        let error = entry(&message("component:default/a", &body), Ordering::Entity, 10_000).expect_err("too large");
        assert!(error.contains("more than message_bytes_max (10000)"), "{error}");
    }
}
