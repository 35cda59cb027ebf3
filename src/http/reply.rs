use std::io::Write;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use catalog_bridge_api::{EntityRef, Event, JsonText};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

/// Most bytes of a page; a single event or entity may be larger.
pub(super) const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Room for what stands before the list, which is known only when the list is done.
const HEAD_ROOM: usize = 512;

/// Room for one reply, given back when the reply was sent or dropped.
pub(super) struct Reservation {
    permit: OwnedSemaphorePermit,
}

impl Reservation {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Reservation { permit }
    }

    /// Keeps only what a reply of this size needs.
    fn shrink(&mut self, bytes: usize) {
        let spare = self.permit.num_permits().saturating_sub(bytes / 1024 + 1);
        drop(self.permit.split(spare));
    }
}

/// A reply that holds a list, put together from texts.
pub(super) struct ListReply {
    reservation: Reservation,
    buffer: Vec<u8>,
    count: usize,
}

impl ListReply {
    pub(super) fn new(reservation: Reservation) -> Self {
        ListReply { reservation, buffer: vec![b' '; HEAD_ROOM], count: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many bytes of the page's limit are left.
    pub(super) fn room(&self) -> usize {
        REPLY_BYTES_MAX.saturating_sub(self.buffer.len())
    }

    /// Whether an item of this size still fits; the first one always does.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.count == 0 || bytes <= self.room()
    }

    pub(super) fn push_event(&mut self, event: &Event) {
        self.separate();
        write_event(&mut self.buffer, event);
    }

    pub(super) fn push_text(&mut self, text: &str) {
        self.separate();
        self.buffer.extend_from_slice(text.as_bytes());
    }

    fn separate(&mut self) {
        if self.count > 0 {
            self.buffer.push(b',');
        }
        self.count += 1;
    }

    /// The whole reply: the members of `head`, then the list under `name`.
    pub(super) fn finish(mut self, head: &impl Serialize, name: &str) -> Response {
        let mut front = serde_json::to_vec(head).unwrap_or_else(|_| b"{}".to_vec());
        front.pop();
        if front.len() > 1 {
            front.push(b',');
        }
        let _ = write!(front, "\"{name}\":[");
        self.buffer.extend_from_slice(b"]}");
        let start = HEAD_ROOM.saturating_sub(front.len());
        if front.len() <= HEAD_ROOM {
            self.buffer[start..HEAD_ROOM].copy_from_slice(&front);
        } else {
            self.buffer.splice(..HEAD_ROOM, front);
        }
        self.reservation.shrink(self.buffer.len());
        let sent = Sent { buffer: self.buffer, _reservation: self.reservation };
        json_response(Body::from(Bytes::from_owner(sent).slice(start..)))
    }
}

/// A reply's bytes together with their reservation.
struct Sent {
    buffer: Vec<u8>,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

/// A JSON text as a reply of its own.
pub(super) fn text_reply(mut reservation: Reservation, text: Vec<u8>) -> Response {
    reservation.shrink(text.len());
    json_response(Body::from(Bytes::from_owner(Sent { buffer: text, _reservation: reservation })))
}

/// A small value as a reply.
pub(super) fn json_reply(value: &impl Serialize) -> Response {
    json_response(Body::from(serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec())))
}

fn json_response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Writes an event as serde would, but puts the entity's text in as it is: serde would read through all of it again.
pub(super) fn write_event(buffer: &mut Vec<u8>, event: &Event) {
    let bare = Event { entity: None, ..event.clone() };
    let _ = serde_json::to_writer(&mut *buffer, &bare);
    if let Some(entity) = &event.entity {
        buffer.pop();
        buffer.extend_from_slice(b",\"entity\":");
        buffer.extend_from_slice(entity.as_str().as_bytes());
        buffer.push(b'}');
    }
}

/// About how many bytes an event takes in a reply.
pub(super) fn event_size(event: &Event) -> usize {
    let changed: usize =
        event.changed.as_ref().map_or(0, |changed| changed.paths.iter().map(|path| path.len() + 3).sum());
    event.entity.as_ref().map_or(0, JsonText::len) + changed + event.entity_ref.as_str().len() + 320
}

/// What is told of an entity whose body was redacted: that it is there.
pub(super) fn redacted_entity(entity_ref: &EntityRef) -> String {
    serde_json::json!({
        "kind": entity_ref.kind(),
        "metadata": {
            "namespace": entity_ref.namespace(),
            "name": entity_ref.name(),
            "annotations": { "catalog-bridge/redacted": "true" },
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{Cause, Changed, EventType, Offset, Reason};
    use chrono::{DateTime, Utc};

    use super::*;

    /// The published schema describes what is served: both ways of writing an event say the same.
    #[test]
    fn events_are_written_as_their_schema_says() {
        let full = Event {
            offset: Offset::new(7),
            event_type: EventType::Updated,
            entity_ref: EntityRef::parse("component:default/a").expect("a ref"),
            uid: Some("u".to_owned()),
            entity: Some(JsonText::from_trusted(r#"{"kind" : "Component", "x": 1.50}"#)),
            changed: Some(Changed { paths: vec!["spec.owner".to_owned()], truncated: true }),
            reason: None,
            occurred_at: DateTime::<Utc>::UNIX_EPOCH,
            recorded_at: DateTime::<Utc>::UNIX_EPOCH,
            cause: Cause::Capture,
            previous_offset: Some(Offset::new(3)),
        };
        let bare = Event { entity: None, changed: None, reason: Some(Reason::LeftFilter), ..full.clone() };

        for event in [full, bare] {
            let mut written = Vec::new();
            write_event(&mut written, &event);
            let again: Event = serde_json::from_slice(&written).expect("valid JSON");
            assert_eq!(again, event);
            let expected = serde_json::to_value(&event).expect("an object");
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&written).expect("valid JSON"), expected);
        }
    }
}
