//! How an event becomes a message.
//!
//! Invariant (P6): the bytes depend only on the event, the log id, the sink's generation and its settings, never on time, epoch or
//! attempt, so every repetition is identical. Entities are copied as text and parsed only where paths are left out.
//!
//! Data of the two CloudEvents encodings: an object with `entityRef`, `uid`, `entity` (absent in removals), `changed`, `reason`,
//! `previousOffset`, `recordedAt`, `cause`, where they are there. Two more members, in every encoding: `omitted` lists the
//! paths that were left out of this entity; `isReference: true` with `entityBytes` says that the entity was too large for
//! the destination and `dataref` (a CloudEvents attribute, in `json` a member) tells where to get it.

mod omit;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::omit::Omit;
use crate::{Changed, Event, EventType, Message, MessageId};

/// Header (never a CloudEvents attribute) that carries the log id.
pub const BRIDGE_LOG_ID: &str = "catalog-bridge-log-id";
/// Header that carries the sink's generation.
pub const BRIDGE_GENERATION: &str = "catalog-bridge-generation";
/// Header that carries the offset, in decimal.
pub const BRIDGE_OFFSET: &str = "catalog-bridge-offset";

/// How an event becomes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// The event as REST serves it.
    Json,
    /// A CloudEvent 1.0 in structured JSON.
    Cloudevents,
    /// A CloudEvent 1.0 whose attributes are the protocol's headers and whose body is the data.
    CloudeventsBinary,
}

/// What an encoder is made of.
#[derive(Debug, Clone)]
pub struct EncoderSettings {
    /// How.
    pub encoding: Encoding,
    /// The log, for `source` and ids.
    pub log_id: Uuid,
    /// The sink's generation, for ids.
    pub generation: u64,
    /// Dotted paths to leave out of entities, such as `spec.definition`.
    pub omit: Vec<String>,
    /// The largest message; a larger one goes as a reference.
    pub message_bytes_max: Option<usize>,
    /// What references begin with, such as `https://bridge.example/api/catalog`.
    pub reference_base: String,
}

/// Makes messages of events.
#[derive(Debug, Clone)]
pub struct Encoder {
    encoding: Encoding,
    log_id: Uuid,
    generation: u64,
    source: String,
    omit: Omit,
    message_bytes_max: usize,
    reference_base: String,
}

/// The entity's part of a body.
enum Entity<'event> {
    Absent,
    Whole(&'event str),
    Reduced { text: Vec<u8>, omitted: Vec<&'event str> },
    Reference { bytes: usize },
}

impl Encoder {
    /// An encoder for one generation of one sink.
    pub fn new(settings: EncoderSettings) -> Self {
        Encoder {
            encoding: settings.encoding,
            log_id: settings.log_id,
            generation: settings.generation,
            source: format!("/catalog/{}", settings.log_id),
            omit: Omit::new(settings.omit),
            message_bytes_max: settings.message_bytes_max.unwrap_or(usize::MAX),
            reference_base: settings.reference_base.trim_end_matches('/').to_owned(),
        }
    }

    /// The message of an event. One larger than the limit becomes a reference; when even that is too large, `uid` and the
    /// changed paths are left out as well, and the destination judges what remains.
    pub fn encode(&self, event: &Event) -> Message {
        let entity = match &event.entity {
            None => Entity::Absent,
            Some(whole) => match self.omit.apply(whole.as_str()) {
                None => Entity::Whole(whole.as_str()),
                Some((text, omitted)) => Entity::Reduced { text, omitted },
            },
        };
        let message = self.message(event, &entity);
        if message.size_bytes() <= self.message_bytes_max {
            return message;
        }
        let reference = Entity::Reference { bytes: event.entity.as_ref().map_or(0, crate::JsonText::len) };
        let message = self.message(event, &reference);
        if message.size_bytes() <= self.message_bytes_max {
            return message;
        }
        let changed = event.changed.as_ref().map(|_| Changed { paths: Vec::new(), truncated: true });
        self.message(&Event { uid: None, changed, entity: None, ..event.clone() }, &reference)
    }

    fn message(&self, event: &Event, entity: &Entity<'_>) -> Message {
        let mut body = Vec::with_capacity(body_capacity(entity));
        let mut attributes = Vec::new();
        match self.encoding {
            Encoding::Json => self.write_rfc_event(&mut body, event, entity),
            Encoding::Cloudevents => {
                body.push(b'{');
                for (name, value) in self.attributes(event, entity) {
                    write_member(&mut body, name, &value);
                    if name == "time" {
                        write_member(&mut body, "datacontenttype", "application/json");
                    }
                }
                write_name(&mut body, "data");
                write_data(&mut body, event, entity);
                body.push(b'}');
            }
            Encoding::CloudeventsBinary => {
                attributes = self.attributes(event, entity);
                write_data(&mut body, event, entity);
            }
        }
        Message {
            id: MessageId { log_id: self.log_id, generation: self.generation, offset: event.offset },
            entity_ref: event.entity_ref.clone(),
            event_type: event.event_type,
            attributes,
            content_type: match self.encoding {
                Encoding::Json | Encoding::CloudeventsBinary => "application/json",
                Encoding::Cloudevents => "application/cloudevents+json",
            },
            body: Bytes::from(body),
            is_reference: matches!(entity, Entity::Reference { .. }),
        }
    }

    fn attributes(&self, event: &Event, entity: &Entity<'_>) -> Vec<(&'static str, String)> {
        let event_type = match event.event_type {
            EventType::Added => "io.backstage.catalog.entity.added.v1",
            EventType::Updated => "io.backstage.catalog.entity.updated.v1",
            EventType::Removed => "io.backstage.catalog.entity.removed.v1",
        };
        let entity_ref = event.entity_ref.as_str();
        let mut attributes = Vec::with_capacity(10);
        attributes.push(("specversion", "1.0".to_owned()));
        attributes.push(("id", event.offset.to_string()));
        attributes.push(("source", self.source.clone()));
        attributes.push(("type", event_type.to_owned()));
        attributes.push(("subject", entity_ref.to_owned()));
        attributes.push(("time", event.occurred_at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)));
        attributes.push(("partitionkey", entity_ref.to_owned()));
        attributes.push(("sequence", event.offset.padded()));
        if matches!(entity, Entity::Reference { .. }) {
            attributes.push(("dataref", self.reference(event)));
        }
        attributes
    }

    /// Where REST serves the whole event. The log id rides along, as under another id the same offset is another event; and the
    /// entity, whose last event stands in when this one is no longer kept.
    fn reference(&self, event: &Event) -> String {
        let mut reference = format!("{}/events/{}?logId={}&entityRef=", self.reference_base, event.offset, self.log_id);
        for byte in event.entity_ref.as_str().bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => reference.push(byte.into()),
                _ => reference.push_str(&format!("%{byte:02X}")),
            }
        }
        reference
    }

    fn write_rfc_event(&self, body: &mut Vec<u8>, event: &Event, entity: &Entity<'_>) {
        body.push(b'{');
        write_member(body, "offset", &event.offset);
        write_member(body, "type", &event.event_type);
        write_member(body, "entityRef", &event.entity_ref);
        write_optional(body, "uid", event.uid.as_ref());
        write_entity(body, entity);
        write_optional(body, "changed", event.changed.as_ref());
        write_optional(body, "reason", event.reason.as_ref());
        write_member(body, "occurredAt", &event.occurred_at);
        write_member(body, "recordedAt", &event.recorded_at);
        write_member(body, "cause", &event.cause);
        write_optional(body, "previousOffset", event.previous_offset.as_ref());
        write_remarks(body, entity);
        if matches!(entity, Entity::Reference { .. }) {
            write_member(body, "dataref", &self.reference(event));
        }
        body.push(b'}');
    }
}

fn write_data(body: &mut Vec<u8>, event: &Event, entity: &Entity<'_>) {
    body.push(b'{');
    write_member(body, "entityRef", &event.entity_ref);
    write_optional(body, "uid", event.uid.as_ref());
    write_entity(body, entity);
    write_optional(body, "changed", event.changed.as_ref());
    write_optional(body, "reason", event.reason.as_ref());
    write_optional(body, "previousOffset", event.previous_offset.as_ref());
    write_member(body, "recordedAt", &event.recorded_at);
    write_member(body, "cause", &event.cause);
    write_remarks(body, entity);
    body.push(b'}');
}

fn write_entity(body: &mut Vec<u8>, entity: &Entity<'_>) {
    let text = match entity {
        Entity::Whole(text) => text.as_bytes(),
        Entity::Reduced { text, .. } => text,
        Entity::Absent | Entity::Reference { .. } => return,
    };
    write_name(body, "entity");
    body.extend_from_slice(text);
}

fn write_remarks(body: &mut Vec<u8>, entity: &Entity<'_>) {
    match entity {
        Entity::Absent | Entity::Whole(_) => {}
        Entity::Reduced { omitted, .. } => write_member(body, "omitted", omitted),
        Entity::Reference { bytes } => {
            write_member(body, "isReference", &true);
            write_member(body, "entityBytes", bytes);
        }
    }
}

fn write_name(body: &mut Vec<u8>, name: &str) {
    if body.last() != Some(&b'{') {
        body.push(b',');
    }
    body.push(b'"');
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(b"\":");
}

fn write_member<T: Serialize + ?Sized>(body: &mut Vec<u8>, name: &str, value: &T) {
    write_name(body, name);
    serde_json::to_writer(body, value)
        .expect("names, numbers, times and lists of them are JSON, and memory takes them");
}

fn write_optional<T: Serialize>(body: &mut Vec<u8>, name: &str, value: Option<&T>) {
    if let Some(value) = value {
        write_member(body, name, value);
    }
}

fn body_capacity(entity: &Entity<'_>) -> usize {
    let entity = match entity {
        Entity::Absent | Entity::Reference { .. } => 0,
        Entity::Whole(text) => text.len(),
        Entity::Reduced { text, .. } => text.len(),
    };
    entity + 1024
}

#[cfg(test)]
mod tests;
