//! A message as RabbitMQ gets it: exchange, routing key, properties.
//!
//! CloudEvents attributes go as headers `cloudEvents_*` (AMQP's protocol binding; RabbitMQ shows them to AMQP 1.0 consumers as
//! application properties). Keeps P6: the same message always makes the same bytes, so no time of sending and no epoch.

use std::borrow::Cow;
use std::fmt::Write;

use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, EntityRef, Message, Template};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// Of a short string of AMQP.
const SHORT_BYTES_MAX: usize = 255;
/// Stored on disk by durable queues.
const PERSISTENT: u8 = 2;

/// The routing key of an entity; what is too long ends in a hash of the whole.
pub(crate) fn routing_key(template: &Template, entity_ref: &EntityRef) -> ShortString {
    let key = template.render(entity_ref, escape);
    ShortString::try_new(key.as_str()).unwrap_or_else(|_| ShortString::from(shorten(&key)))
}

/// The exchange of an entity; `None` when its name would be too long for AMQP.
pub(crate) fn exchange(template: &Template, entity_ref: &EntityRef) -> Option<ShortString> {
    ShortString::try_new(template.render(entity_ref, escape)).ok()
}

/// Nothing in a part may count as a separator or be taken for a pattern.
fn escape(part: &str) -> Cow<'_, str> {
    if !part.contains(['.', '*', '#', '%']) {
        return part.into();
    }
    let mut escaped = String::with_capacity(part.len() + 8);
    for letter in part.chars() {
        match letter {
            '.' => escaped.push_str("%2E"),
            '*' => escaped.push_str("%2A"),
            '#' => escaped.push_str("%23"),
            '%' => escaped.push_str("%25"),
            other => escaped.push(other),
        }
    }
    escaped.into()
}

fn shorten(key: &str) -> String {
    let suffix = format!("~{:016x}", hash(key));
    let end = (0..=SHORT_BYTES_MAX - suffix.len()).rev().find(|end| key.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{suffix}", &key[..end])
}

/// FNV-1a: the same in every release, unlike the hasher of std.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Everything about a message that is not its body.
pub(crate) fn properties(message: &Message, log_id: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut insert = |name: &str, value: &str| {
        headers.insert(ShortString::from(name), AMQPValue::LongString(value.into()));
    };
    let mut name = String::with_capacity(32);
    for (attribute, value) in &message.attributes {
        // The property `content_type` says it.
        if *attribute != "datacontenttype" {
            name.clear();
            let _ = write!(name, "cloudEvents_{attribute}");
            insert(&name, value);
        }
    }
    insert(BRIDGE_LOG_ID, log_id);
    insert(BRIDGE_GENERATION, &message.id.generation.to_string());
    insert(BRIDGE_OFFSET, &message.id.offset.to_string());
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(message.content_type.into())
        .with_message_id(message.id.to_string().into())
        .with_type(event_type(message).into())
        .with_headers(headers)
}

/// The CloudEvents type, in every encoding.
fn event_type(message: &Message) -> String {
    let attribute = message.attributes.iter().find(|(name, _)| *name == "type");
    attribute.map_or_else(
        || format!("io.backstage.catalog.entity.{}.v1", message.event_type.as_str()),
        |(_, value)| value.clone(),
    )
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{EventType, MessageId};

    use super::*;

    fn entity_ref(text: &str) -> EntityRef {
        EntityRef::parse(text).expect("valid")
    }

    fn key(text: &str) -> String {
        let template = Template::parse("catalog.{kind}.{namespace}.{name}").expect("valid");
        routing_key(&template, &entity_ref(text)).to_string()
    }

    #[test]
    fn a_key_has_as_many_words_as_its_template() {
        assert_eq!(key("component:default/a"), "catalog.component.default.a");
        assert_eq!(key("component:my.space/a.b#*%"), "catalog.component.my%2Espace.a%2Eb%23%2A%25");
    }

    #[test]
    fn a_long_key_keeps_its_beginning_and_stays_distinct() {
        let first = key(&format!("component:default/{}a", "ü".repeat(200)));
        let second = key(&format!("component:default/{}b", "ü".repeat(200)));

        assert!(first.len() <= 255 && first.starts_with("catalog.component.default.ü"), "{first}");
        assert_ne!(first, second);
    }

    #[test]
    fn a_message_is_persistent_and_carries_its_identity() {
        let message = Message {
            id: MessageId { log_id: uuid::Uuid::from_u128(7), generation: 3, offset: 42.into() },
            entity_ref: entity_ref("component:default/a"),
            event_type: EventType::Removed,
            attributes: vec![("id", "42".to_owned()), ("datacontenttype", "application/json".to_owned())],
            content_type: "application/json",
            body: "{}".into(),
            is_reference: false,
        };

        let properties = properties(&message, "the log");

        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("00000000.3.42"));
        assert_eq!(properties.kind().as_ref().map(ShortString::as_str), Some("io.backstage.catalog.entity.removed.v1"));
        let headers = properties.headers().as_ref().expect("headers").inner();
        let names: Vec<&str> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(names, [BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, "cloudEvents_id"]);
    }
}
