//! What a sink would send next, encoded as it sends it, without sending it.

use serde_json::{Value, json};

use super::Sink;
use super::checkpoint::Position;
use super::reader::Cursor;
use crate::store::{ConsumerKind, ReadLimits, StoreError, Tail};

/// How far a preview looks at most for messages that the sink's view lets through.
const LOOKED_AT_MAX: usize = 10_000;
/// Bytes of a body that are shown.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// The next messages of a sink, at most `limit`; touches nothing. A sink that never ran is shown from the log's beginning.
pub async fn preview(sink: &Sink, tail: &Tail, limit: usize) -> Result<Value, StoreError> {
    let store = tail.store();
    let state = store.state().await?;
    let row = store.checkpoint(ConsumerKind::Sink, sink.name.as_str()).await?;
    let generation = row.as_ref().map_or(1, |row| row.generation);
    let mut cursor = row.as_ref().map_or(Cursor::Log { after: state.oldest }, |row| Cursor::at(&Position::of(row)));
    let encoder = sink.encoder(state.log_id, generation);
    let (mut messages, mut looked_at) = (Vec::new(), 0);
    let limits = ReadLimits { events_max: 200, bytes_max: 4 * 1024 * 1024 };
    while messages.len() < limit && looked_at < LOOKED_AT_MAX {
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
        messages.extend(seen.take(limit - messages.len()).map(|event| shown(&encoder.encode(&event))));
        cursor = next;
    }
    Ok(json!({ "sink": sink.name, "generation": generation, "messages": messages }))
}

fn shown(message: &catalog_bridge_api::Message) -> Value {
    let body = &message.body[..message.body.len().min(BODY_BYTES_MAX)];
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
        "body": serde_json::from_slice(&message.body).unwrap_or_else(|_| json!(String::from_utf8_lossy(body))),
    })
}
