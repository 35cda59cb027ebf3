use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Cause, EntityRef, JsonText, Offset, Reason};

fn updated() -> Event {
    Event {
        offset: Offset::new(17),
        event_type: EventType::Updated,
        entity_ref: EntityRef::parse("component:default/a").expect("valid"),
        uid: Some("u-1".to_owned()),
        entity: Some(JsonText::from_trusted(r#"{"kind":"Component", "spec":{"owner":"b","definition":"long"}}"#)),
        changed: Some(Changed { paths: vec!["spec.owner".to_owned()], truncated: false }),
        reason: None,
        occurred_at: "2026-11-24T10:00:00.5Z".parse().expect("a time"),
        recorded_at: "2026-11-24T10:00:01Z".parse().expect("a time"),
        cause: Cause::Capture,
        previous_offset: Some(Offset::new(9)),
    }
}

fn encoder(encoding: Encoding) -> Encoder {
    Encoder::new(settings(encoding))
}

fn settings(encoding: Encoding) -> EncoderSettings {
    EncoderSettings {
        encoding,
        log_id: Uuid::from_u128(0x1234),
        generation: 2,
        omit: Vec::new(),
        message_bytes_max: None,
        reference_base: "https://bridge.example/api/catalog".to_owned(),
    }
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.body).expect("JSON")
}

#[test]
fn structured_is_a_cloudevent() {
    let message = encoder(Encoding::Cloudevents).encode(&updated());

    assert_eq!(message.content_type, "application/cloudevents+json");
    assert!(message.attributes.is_empty());
    let expected = json!({
        "specversion": "1.0",
        "id": "17",
        "source": "/catalog/00000000-0000-0000-0000-000000001234",
        "type": "io.backstage.catalog.entity.updated.v1",
        "subject": "component:default/a",
        "time": "2026-11-24T10:00:00.500Z",
        "datacontenttype": "application/json",
        "partitionkey": "component:default/a",
        "sequence": "00000000000000000017",
        "data": {
            "entityRef": "component:default/a",
            "uid": "u-1",
            "entity": {"kind": "Component", "spec": {"owner": "b", "definition": "long"}},
            "changed": {"paths": ["spec.owner"]},
            "previousOffset": 9,
            "recordedAt": "2026-11-24T10:00:01Z",
            "cause": "capture",
        },
    });
    assert_eq!(body(&message), expected);
}

#[test]
fn binary_carries_the_same_attributes_and_data() {
    let structured = body(&encoder(Encoding::Cloudevents).encode(&updated()));
    let message = encoder(Encoding::CloudeventsBinary).encode(&updated());

    assert_eq!(message.content_type, "application/json");
    assert_eq!(body(&message), structured["data"]);
    for (name, value) in &message.attributes {
        assert_eq!(structured[*name], Value::from(value.as_str()), "{name}");
    }
    assert_eq!(message.attributes.len(), 8);
    assert_eq!(message.id.to_string(), "00000000.2.17");
}

#[test]
fn a_removal_has_no_entity() {
    let removed = Event {
        event_type: EventType::Removed,
        entity: None,
        changed: None,
        reason: Some(Reason::LeftFilter),
        ..updated()
    };

    let message = encoder(Encoding::CloudeventsBinary).encode(&removed);

    assert_eq!(body(&message).get("entity"), None);
    assert_eq!(body(&message)["reason"], "left-filter");
    assert_eq!(message.attributes[3].1, "io.backstage.catalog.entity.removed.v1");
}

#[test]
fn what_is_omitted_is_said() {
    let omitting = Encoder::new(EncoderSettings {
        omit: vec!["spec.definition".to_owned(), "spec.none".to_owned()],
        ..settings(Encoding::Json)
    });

    let message = omitting.encode(&updated());

    assert_eq!(body(&message)["entity"], json!({"kind": "Component", "spec": {"owner": "b"}}));
    assert_eq!(body(&message)["omitted"], json!(["spec.definition"]));
}

#[test]
fn an_oversize_event_goes_as_a_reference() {
    let long = JsonText::from_trusted(format!("{{\"a\":\"{}\"}}", "x".repeat(5_000)));
    let entity_ref = EntityRef::parse("component:default/a+é").expect("valid");
    let event = Event { entity: Some(long), entity_ref, ..updated() };
    for encoding in [Encoding::Json, Encoding::Cloudevents, Encoding::CloudeventsBinary] {
        let small = Encoder::new(EncoderSettings { message_bytes_max: Some(2_000), ..settings(encoding) });

        let message = small.encode(&event);

        assert!(message.is_reference);
        assert!(message.size_bytes() <= 2_000);
        let body = body(&message);
        let data = if encoding == Encoding::Cloudevents { &body["data"] } else { &body };
        assert_eq!(data["isReference"], true);
        assert_eq!(data["entityBytes"], 5_008);
        assert_eq!(data.get("entity"), None);
        let attribute = message.attributes.iter().find(|(name, _)| *name == "dataref").map(|(_, value)| value.clone());
        let dataref = attribute.unwrap_or_else(|| body["dataref"].as_str().expect("a dataref").to_owned());
        let place = "https://bridge.example/api/catalog/events/17";
        let query = "logId=00000000-0000-0000-0000-000000001234&entityRef=component:default/a%2B%C3%A9";
        assert_eq!(dataref, format!("{place}?{query}"));
    }
}

#[test]
fn a_reference_drops_changed_paths_rather_than_exceed_the_limit() {
    let paths = (0..32).map(|number| format!("spec.{}{number}", "long".repeat(50))).collect();
    let event = Event { changed: Some(Changed { paths, truncated: false }), ..updated() };
    let small = Encoder::new(EncoderSettings { message_bytes_max: Some(1_500), ..settings(Encoding::Cloudevents) });

    let message = small.encode(&event);

    assert!(message.is_reference && message.size_bytes() <= 1_500);
    assert_eq!(body(&message)["data"]["changed"], json!({"paths": [], "truncated": true}));
}

fn event_strategy() -> impl Strategy<Value = Event> {
    let name = "[a-z0-9._\"\\\\é-]{1,20}";
    let paths = prop::collection::vec("[a-z.\"]{1,10}", 0..4);
    let changed = prop::option::of((paths, any::<bool>()));
    let times = (0_i64..4_000_000_000, 0_u32..1_000_000_000, 0_i64..4_000_000_000);
    (1_u64.., name, prop::option::of(".*"), prop::option::of("[a-z\\PC]{0,50}"), changed, times, any::<bool>())
        .prop_map(|(offset, name, uid, text, changed, (seconds, nanos, recorded), left)| Event {
            offset: Offset::new(offset),
            event_type: if text.is_some() { EventType::Added } else { EventType::Removed },
            entity_ref: EntityRef::from_parts("component", "default", &name).expect("valid"),
            uid,
            entity: text.map(|text| JsonText::from_trusted(json!({"kind": "X", "text": text}).to_string())),
            changed: changed.map(|(paths, truncated)| Changed { paths, truncated }),
            reason: left.then_some(Reason::LeftFilter),
            occurred_at: chrono::DateTime::from_timestamp(seconds, nanos).expect("in range"),
            recorded_at: chrono::DateTime::from_timestamp(recorded, 0).expect("in range"),
            cause: Cause::Ingest,
            previous_offset: left.then_some(Offset::new(offset - 1)),
        })
}

proptest! {
    /// `json` is the event as REST serves it.
    #[test]
    fn json_is_exactly_what_serde_makes_of_the_event(event in event_strategy()) {
        let message = encoder(Encoding::Json).encode(&event);
        prop_assert_eq!(&message.body[..], &serde_json::to_vec(&event).expect("serializable")[..]);
    }

    /// Promise P6.
    #[test]
    fn every_repetition_is_identical_and_every_body_is_json(event in event_strategy(), limit in prop::option::of(0_usize..4_000)) {
        for encoding in [Encoding::Json, Encoding::Cloudevents, Encoding::CloudeventsBinary] {
            let settings = EncoderSettings { message_bytes_max: limit, ..settings(encoding) };
            let (one, two) = (Encoder::new(settings.clone()).encode(&event), Encoder::new(settings).encode(&event));
            prop_assert_eq!(&one.body, &two.body);
            prop_assert_eq!(&one.attributes, &two.attributes);
            prop_assert!(serde_json::from_slice::<Value>(&one.body).is_ok());
        }
    }
}
