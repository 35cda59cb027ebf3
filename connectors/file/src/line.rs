//! One message as one line of JSON.
//!
//! A line is the message's body with three more members at its end, `bridgelogid`, `bridgegeneration` and `bridgeoffset`: valid
//! as CloudEvents extensions and as additional members of the RFC event, and what a new session recognizes its own tail by.

use bytes::Bytes;
use catalog_bridge_api::{Message, Offset};
use serde::Deserialize;
use uuid::Uuid;

/// Appends the line of `message`, line end included.
pub(crate) fn write_line(message: &Message, line: &mut Vec<u8>) {
    let body = if message.attributes.is_empty() { message.body.clone() } else { structured(message) };
    let body = body.strip_suffix(b"}").unwrap_or(&body);
    // Between JSON tokens a line end may stand as white space (entities are kept as they came in); inside strings it is escaped.
    line.extend(body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
    let id = &message.id;
    let marks = format!(
        ",\"bridgelogid\":\"{}\",\"bridgegeneration\":\"{}\",\"bridgeoffset\":\"{}\"}}\n",
        id.log_id, id.generation, id.offset
    );
    line.extend_from_slice(marks.as_bytes());
}

/// A file has no headers: the binary encoding's attributes go back into the body.
fn structured(message: &Message) -> Bytes {
    let mut body = vec![b'{'];
    for (name, value) in &message.attributes {
        let value = serde_json::Value::from(value.as_str());
        body.extend_from_slice(format!("\"{name}\":{value},").as_bytes());
    }
    body.extend_from_slice(b"\"datacontenttype\":\"application/json\",\"data\":");
    body.extend_from_slice(&message.body);
    body.push(b'}');
    body.into()
}

/// The identity that a line carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) log_id: Uuid,
    pub(crate) generation: u64,
    pub(crate) offset: Offset,
}

/// The marks of a complete line; `None` when it is not a line of ours.
pub(crate) fn parse_marks(line: &[u8]) -> Option<Marks> {
    #[derive(Deserialize)]
    struct Known<'line> {
        #[serde(borrow)]
        bridgelogid: std::borrow::Cow<'line, str>,
        #[serde(borrow)]
        bridgegeneration: std::borrow::Cow<'line, str>,
        #[serde(borrow)]
        bridgeoffset: std::borrow::Cow<'line, str>,
    }
    let known: Known<'_> = serde_json::from_slice(line).ok()?;
    Some(Marks {
        log_id: known.bridgelogid.parse().ok()?,
        generation: known.bridgegeneration.parse().ok()?,
        offset: Offset::new(known.bridgeoffset.parse().ok()?),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use catalog_bridge_api::{EntityRef, EventType, MessageId};

    use super::*;

    pub(crate) fn message(offset: u64, body: &str) -> Message {
        Message {
            id: MessageId { log_id: Uuid::from_u128(7), generation: 3, offset: offset.into() },
            entity_ref: EntityRef::parse("component:default/a").expect("valid"),
            event_type: EventType::Added,
            attributes: Vec::new(),
            content_type: "application/json",
            body: Bytes::copy_from_slice(body.as_bytes()),
            is_reference: false,
        }
    }

    #[test]
    fn a_line_is_the_body_on_one_line_with_its_marks() {
        let mut line = Vec::new();

        write_line(&message(5, "{\"entity\":{\r\n\"a\":\"x\\ny\"}}"), &mut line);

        let text = String::from_utf8(line.clone()).expect("text");
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["entity"]["a"], "x\ny");
        let marks = Marks { log_id: Uuid::from_u128(7), generation: 3, offset: 5.into() };
        assert_eq!(parse_marks(&line), Some(marks));
    }

    #[test]
    fn binary_messages_become_structured_lines() {
        let mut binary = message(1, "{\"uid\":\"u\"}");
        binary.attributes = vec![("specversion", "1.0".to_owned()), ("id", "1".to_owned())];
        let mut line = Vec::new();

        write_line(&binary, &mut line);

        let value: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(value["id"], "1");
        assert_eq!(value["data"]["uid"], "u");
    }

    #[test]
    fn other_lines_have_no_marks() {
        for line in ["", "{}", "{\"bridgelogid\":\"x\"}", "hello", "[1]", "{\"bridgelogid\":1}"] {
            assert_eq!(parse_marks(line.as_bytes()), None, "{line}");
        }
    }
}
