//! What a sink would send next, encoded as it sends it, without sending it.

use serde_json::{Value, json};

use super::Sink;
use super::checkpoint::Position;
use super::reader::Cursor;
use crate::store::{ConsumerKind, ReadLimits, StoreError, Tail};

/// How far a preview looks at most for messages that the sink's view lets through.
const LOOKED_AT_MAX: usize = 10_000;
/// Bytes of a body that are shown; of a larger one the beginning, as text.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of all messages that are shown; the first one always is.
const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The next messages of a sink, at most `limit` and about 4 MiB; touches nothing. A sink that never ran is shown from the log's beginning.
pub async fn preview(sink: &Sink, tail: &Tail, limit: usize) -> Result<Value, StoreError> {
    let store = tail.store();
    let state = store.state().await?;
    let row = store.checkpoint(ConsumerKind::Sink, sink.name.as_str()).await?;
    let generation = row.as_ref().map_or(1, |row| row.generation);
    let mut cursor = row.as_ref().map_or(Cursor::Log { after: state.oldest }, |row| Cursor::at(&Position::of(row)));
    let encoder = sink.encoder(state.log_id, generation);
    let (mut messages, mut looked_at) = (Shown::default(), 0);
    let limits = ReadLimits { events_max: 200, bytes_max: 4 * 1024 * 1024 };
    while messages.values.len() < limit && !messages.is_full && looked_at < LOOKED_AT_MAX {
        let (entries, next) = match cursor {
            Cursor::Walk { at, removals_above, after } => {
                let page = store.walk(at, after, removals_above, limits).await?;
                let last = page.entries.last().map(|entry| entry.event.offset);
                let next = match last {
                    Some(last) if page.more => Cursor::Walk { at, removals_above, after: last },
                    _ => Cursor::Log { after: at },
                };
                (page.entries, next)
            }
            Cursor::Log { after } => {
                let page = tail.read(after, limits).await?;
                let Some(last) = page.entries.last().map(|entry| entry.event.offset) else { break };
                (page.entries, Cursor::Log { after: last })
            }
        };
        looked_at += entries.len().max(1);
        let seen = entries.iter().filter_map(|entry| sink.view.see(entry));
        for event in seen.take(limit - messages.values.len()) {
            messages.push(shown(&encoder.encode(&event)));
            if messages.is_full {
                break;
            }
        }
        cursor = next;
    }
    Ok(json!({ "sink": sink.name, "generation": generation, "messages": messages.values }))
}

#[derive(Default)]
struct Shown {
    values: Vec<Value>,
    bytes: usize,
    /// A message did not fit any more.
    is_full: bool,
}

impl Shown {
    fn push(&mut self, message: Value) {
        let bytes = message.to_string().len();
        if !self.values.is_empty() && self.bytes + bytes > REPLY_BYTES_MAX {
            self.is_full = true;
            return;
        }
        self.bytes += bytes;
        self.values.push(message);
    }
}

fn shown(message: &catalog_bridge_api::Message) -> Value {
    let attributes: serde_json::Map<String, Value> =
        message.attributes.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "id": message.id.to_string(),
        "offset": message.offset(),
        "type": message.event_type,
        "key": message.entity_ref,
        "contentType": message.content_type,
        "attributes": attributes,
        "bodyBytes": message.body.len(),
        "isReference": message.is_reference,
        "body": shown_body(&message.body),
    })
}

/// A small body as JSON when it is that; else its beginning as text, so that a body's size and nesting cost nothing.
fn shown_body(body: &[u8]) -> Value {
    let beginning = &body[..body.len().min(BODY_BYTES_MAX)];
    let parsed = if beginning.len() == body.len() { serde_json::from_slice(body).ok() } else { None };
    parsed.unwrap_or_else(|| json!(String::from_utf8_lossy(beginning)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_large_body_is_shown() {
        let small = json!({ "a": 1 });
        assert_eq!(shown_body(small.to_string().as_bytes()), small);
        assert_eq!(shown_body(b"plain"), json!("plain"));

        let large = json!({ "a": "x".repeat(BODY_BYTES_MAX) }).to_string();
        assert_eq!(shown_body(large.as_bytes()), json!(&large[..BODY_BYTES_MAX]));
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let mut shown = Shown::default();
        while !shown.is_full {
            shown.push(json!("x".repeat(1024 * 1024)));
        }
        assert_eq!(shown.values.len(), 3);

        let mut one = Shown::default();
        one.push(json!("x".repeat(5 * 1024 * 1024)));
        assert_eq!(one.values.len(), 1, "the first one is always shown");
    }
}
