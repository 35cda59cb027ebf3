//! Events to deliver.

use catalog_bridge_api::{Cause, EntityRef, Event, EventType, JsonText, Offset};

/// `count` updates over `keys` entities, from offset 1.
pub(crate) fn updates(count: u64, keys: u64) -> Vec<Event> {
    (1..=count).map(|number| event(number, &format!("e{}", number % keys), 200)).collect()
}

/// One event; the entity's body has at least `bytes`.
pub(crate) fn event(offset: u64, name: &str, bytes: usize) -> Event {
    let entity_ref = EntityRef::from_parts("component", "default", name).expect("a valid name");
    let text = serde_json::json!({ "kind": "Component", "metadata": { "name": name }, "text": "x".repeat(bytes) });
    let at = chrono::DateTime::from_timestamp(1_700_000_000 + i64::try_from(offset).expect("small"), 0);
    let at = at.expect("in range");
    Event {
        offset: Offset::new(offset),
        event_type: EventType::Updated,
        entity_ref,
        uid: Some(format!("uid-{name}")),
        entity: Some(JsonText::from_trusted(text.to_string())),
        changed: None,
        reason: None,
        occurred_at: at,
        recorded_at: at,
        cause: Cause::Capture,
        previous_offset: None,
    }
}

/// A removal: the smallest event.
pub(crate) fn removal(offset: u64, name: &str) -> Event {
    Event { event_type: EventType::Removed, entity: None, uid: None, ..event(offset, name, 0) }
}

/// Names that a protocol may stumble over: separators, wildcards, quotes, other scripts, the longest.
pub(crate) fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "a.b.c",
        "a*b",
        "a>b",
        "#",
        "a b",
        "a\"b'c",
        "a\\b",
        "a%b",
        "a/b/c",
        "a~2eb",
        "ümlaut",
        "名前",
        "🦀",
        "a,b;c=d",
        "{kind}",
        "$sys",
        "..",
        "-",
        "_",
        "a&b<c>",
        "a\u{fffd}b",
        "e\u{301}",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push("n".repeat(200));
    names
}
