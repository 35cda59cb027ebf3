use catalog_bridge_api::{Cause, Changed, EntityRef, Event, EventType, JsonText, Offset, Reason};
use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::*;
use crate::store::LogEntry;

fn filter(text: &str) -> Filter {
    Filter::parse(&text.split('|').map(str::to_owned).collect::<Vec<_>>()).expect(text)
}

const ENTITY: &str = r#"{
    "apiVersion": "backstage.io/v1alpha1", "kind": "Component",
    "metadata": {
        "name": "Shop", "uid": "u-1", "etag": "e-1", "tags": ["Java", "spring boot", 7], "description": null,
        "annotations": {"backstage.io/techdocs-ref": "dir:."}, "labels": {}, "links": [{"url": "https://a"}, {"url": "https://b"}]
    },
    "spec": {"type": "service", "owner": "Team-A", "port": 8080, "share": 1.50, "public": true, "empty": "", "none": [],
        "nested": [["deep"]]},
    "relations": [{"type": "ownedBy", "targetRef": "group:default/team-a"}, {"type": "partOf", "targetRef": "system:default/s"}],
    "status": {"items": [{"level": "error"}]}
}"#;

/// The filter syntax as a real Backstage answers it (BACKSTAGE.md section 8, and its search index).
#[test]
fn a_filter_matches_as_backstage_does() {
    let entity = JsonText::parse(ENTITY).expect("valid");
    let check = |text: &str, expected: bool| assert_eq!(filter(text).matches(&entity), expected, "{text}");

    for text in [
        "kind=component",
        "KIND=COMPONENT",
        "kind=component,spec.type=service",
        "spec.type=website,spec.type=service",
        "kind=api|kind=component",
        "spec.owner=team-a",
        "spec.owner",
        "metadata.tags.java",
        "metadata.tags.java=true",
        "metadata.tags=JAVA",
        "metadata.tags=spring boot",
        "metadata.tags=7",
        "metadata.annotations.backstage.io/techdocs-ref",
        "metadata.description",
        "metadata.links.url=https://b",
        "metadata.namespace=default",
        "metadata.namespace",
        "metadata.uid=u-1",
        "relations.ownedBy=group:default/team-a",
        "relations.ownedBy,relations.partOf=system:default/s",
        "spec.port=8080",
        "spec.share=1.5",
        "spec.public=true",
        "spec.empty=",
        "spec.nested=deep",
        "spec.nested.deep",
        " kind = component , spec.type = service ,",
        "spec.type,spec.type=service",
    ] {
        check(text, true);
    }
    for text in [
        "kind=api",
        "kind=component,spec.type=website",
        "spec.type,spec.type=website",
        "metadata.tags.7",
        "metadata.description=null",
        "metadata.description=",
        "metadata.labels",
        "metadata.etag",
        "metadata.etag=e-1",
        "spec.none",
        "spec",
        "status.items.level=error",
        "status",
        "relations",
        "relations.ownedBy=group:default/team-b",
        "spec.own",
        "spec.owner.team-a",
        "unknown.key",
        "spec.owner=",
    ] {
        check(text, false);
    }
}

#[test]
fn very_long_values_only_exist_and_very_long_keys_do_not() {
    let long = "x".repeat(201);
    let entity = JsonText::parse(format!(r#"{{"kind":"a","spec":{{"long":"{long}","{long}":"v"}}}}"#)).expect("valid");

    assert!(filter("spec.long").matches(&entity));
    assert!(!filter(&format!("spec.long={long}")).matches(&entity));
    assert!(!filter(&format!("spec.{long}")).matches(&entity));
}

#[test]
fn a_namespace_that_is_there_is_not_default() {
    let entity = JsonText::parse(r#"{"kind":"a","metadata":{"name":"n","namespace":"Shop"}}"#).expect("valid");

    assert!(filter("metadata.namespace=shop").matches(&entity));
    assert!(!filter("metadata.namespace=default").matches(&entity));
}

#[test]
fn unusable_filters_say_what_to_write() {
    let check = |text: &str, expected: &str| {
        let error = Filter::parse(&[text.to_owned()]).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
    };

    check("", "an empty filter; write key=value or key, such as kind=component");
    check(" , ", "an empty filter; write key=value or key, such as kind=component");
    check("kind=a,=b", "\"=b\" is no condition; write key=value or key, such as kind=component");
    let many = (0..129).map(|number| format!("k{number}")).collect::<Vec<_>>().join(",");
    check(&many, "the filter is too large: at most 128 conditions, and 16384 bytes in each alternative");
}

#[test]
fn the_canonical_form_parses_to_the_same_filter() {
    for text in ["kind=component", "Kind=A,kind=b,spec.owner", "a=1,b=2|b=2,c|a=", "spec.type=x,spec.type"] {
        let parsed = filter(text);
        let again = Filter::parse(&parsed.to_alternatives()).expect("canonical");
        assert_eq!(again.to_alternatives(), parsed.to_alternatives(), "{text}");
    }
}

#[test]
fn content_leaves_out_what_backstage_computes() {
    let check = |changes: &Changes, paths: &[&str], truncated: bool, expected: bool| {
        let changed = Changed { paths: paths.iter().map(|path| (*path).to_owned()).collect(), truncated };
        assert_eq!(changes.pass(Some(&changed)), expected, "{changes} {paths:?}");
    };
    let content = Changes::parse("content");
    let paths = Changes::parse("spec.owner, metadata.tags");

    check(&content, &["relations"], false, false);
    check(&content, &["metadata.etag", "relations", "status.items"], false, false);
    check(&content, &["metadata.annotations.backstage.io/orphan", "metadata.etag"], false, false);
    check(&content, &["metadata.annotations.backstage.io/managed-by-location"], false, false);
    check(&content, &["metadata.annotations.backstage.io/managed-by-locations"], false, true);
    check(&content, &["metadata.etag", "spec.owner"], false, true);
    check(&content, &["relations"], true, true);
    check(&paths, &["spec.owner"], false, true);
    check(&paths, &["spec"], false, true);
    check(&paths, &["metadata.tags.java"], false, true);
    check(&paths, &["spec.owners"], false, false);
    check(&paths, &["spec.type"], false, false);
    check(&paths, &["spec.type"], true, true);
    check(&Changes::All, &["relations"], false, true);
    assert!(content.pass(None), "a redacted change is not known, so it passes");
}

fn entry(offset: u64, name: &str, before: Option<&str>, after: Option<&str>) -> LogEntry {
    let body = |owner: &str| {
        JsonText::from_trusted(format!(
            r#"{{"kind":"Component","metadata":{{"name":"{name}"}},"spec":{{"owner":"{owner}"}}}}"#
        ))
    };
    let event_type = match (before, after) {
        (None, _) => EventType::Added,
        (Some(_), Some(_)) => EventType::Updated,
        (Some(_), None) => EventType::Removed,
    };
    LogEntry {
        event: Event {
            offset: Offset::new(offset),
            event_type,
            entity_ref: EntityRef::parse(&format!("component:default/{name}")).expect("a ref"),
            uid: None,
            entity: after.map(body),
            changed: (event_type == EventType::Updated)
                .then(|| Changed { paths: vec!["spec.owner".to_owned()], truncated: false }),
            reason: None,
            occurred_at: DateTime::<Utc>::UNIX_EPOCH,
            recorded_at: DateTime::<Utc>::UNIX_EPOCH,
            cause: Cause::Capture,
            previous_offset: None,
        },
        previous_entity: before.map(body),
    }
}

fn view(text: &str) -> View {
    View { filter: Some(filter(text)), ..View::default() }
}

#[track_caller]
fn check_seen(view: &View, entry: &LogEntry, expected: Option<(EventType, Option<Reason>, bool)>) {
    let seen = view.see(entry).map(|event| (event.event_type, event.reason, event.entity.is_some()));
    assert_eq!(seen, expected);
}

#[test]
fn a_view_tells_entering_and_leaving() {
    let mine = view("spec.owner=a");

    check_seen(&mine, &entry(1, "x", None, Some("a")), Some((EventType::Added, None, true)));
    check_seen(&mine, &entry(1, "x", None, Some("b")), None);
    check_seen(&mine, &entry(2, "x", Some("b"), Some("a")), Some((EventType::Added, None, true)));
    check_seen(&mine, &entry(2, "x", Some("a"), Some("a")), Some((EventType::Updated, None, true)));
    check_seen(
        &mine,
        &entry(2, "x", Some("a"), Some("b")),
        Some((EventType::Removed, Some(Reason::LeftFilter), false)),
    );
    check_seen(&mine, &entry(2, "x", Some("b"), Some("c")), None);
    check_seen(&mine, &entry(3, "x", Some("a"), None), Some((EventType::Removed, None, false)));
    check_seen(&mine, &entry(3, "x", Some("b"), None), None);
}

#[test]
fn a_removal_passes_when_the_last_state_is_no_longer_kept() {
    let mut removal = entry(3, "x", Some("b"), None);
    removal.previous_entity = None;

    check_seen(&view("spec.owner=a"), &removal, Some((EventType::Removed, None, false)));
    check_seen(&view("kind=component,spec.owner=a"), &removal, Some((EventType::Removed, None, false)));
    check_seen(&view("kind=group,spec.owner=a"), &removal, None);
}

/// What is asked for by itself may lie where retention took the state before, which then proves nothing.
#[test]
fn an_event_alone_is_seen_only_without_doubt() {
    let mine = view("spec.owner=a");
    let without_previous = |before, after| LogEntry { previous_entity: None, ..entry(3, "x", before, after) };
    let check = |view: &View, entry: LogEntry, expected: Option<EventType>| {
        assert_eq!(view.see_alone(&entry).map(|event| event.event_type), expected);
    };

    check(&mine, without_previous(Some("b"), Some("c")), None);
    check(&mine, without_previous(Some("b"), None), None);
    check(&mine, without_previous(Some("b"), Some("a")), Some(EventType::Added));
    check(&view("kind=component"), without_previous(Some("b"), Some("c")), Some(EventType::Updated));
    check(&mine, entry(3, "x", Some("a"), Some("b")), Some(EventType::Removed));
    check(&mine, entry(3, "x", Some("a"), None), Some(EventType::Removed));
}

#[test]
fn a_redacted_state_is_told_as_gone_and_never_as_seen() {
    let mut into = entry(2, "x", Some("a"), Some("a"));
    into.event.entity = None;
    let mut out_of = entry(3, "x", Some("a"), Some("b"));
    out_of.previous_entity = None;

    check_seen(&view("spec.owner=a"), &into, Some((EventType::Removed, Some(Reason::LeftFilter), false)));
    check_seen(&view("spec.owner=a"), &out_of, Some((EventType::Removed, Some(Reason::LeftFilter), false)));
    check_seen(&view("kind=component"), &into, Some((EventType::Updated, None, false)));
}

#[test]
fn filter_and_bound_must_both_match() {
    let both = View { bound: Some(filter("metadata.name=x")), ..view("spec.owner=a") };

    check_seen(&both, &entry(1, "x", None, Some("a")), Some((EventType::Added, None, true)));
    check_seen(&both, &entry(1, "y", None, Some("a")), None);
    check_seen(&both, &entry(1, "x", None, Some("b")), None);
}

#[test]
fn types_are_judged_as_the_reader_sees_them() {
    let removed = View { types: vec![EventType::Removed], ..view("spec.owner=a") };

    check_seen(
        &removed,
        &entry(2, "x", Some("a"), Some("b")),
        Some((EventType::Removed, Some(Reason::LeftFilter), false)),
    );
    check_seen(&removed, &entry(2, "x", Some("b"), Some("a")), None);
}

#[test]
fn a_repeated_walk_tells_what_left_the_filter() {
    let mine = view("spec.owner=a");
    let outside = entry(7, "x", None, Some("b"));

    assert_eq!(mine.see_in_walk(&outside, false), None);
    let told = mine.see_in_walk(&outside, true).expect("told");
    assert_eq!((told.event_type, told.reason), (EventType::Removed, Some(Reason::LeftFilter)));
    assert_eq!(mine.see_in_walk(&entry(8, "x", None, Some("a")), true).expect("seen").event_type, EventType::Added);
}

proptest! {
    /// Guards P4 with a filter: the filtered state at any offset, plus the filtered events after it, is the filtered live
    /// state; and what is seen is well formed.
    #[test]
    fn seeing_a_history_keeps_the_filtered_state(
        steps in proptest::collection::vec((0..4_usize, proptest::option::of(0..3_usize)), 0..60),
        start in 0..60_usize,
    ) {
        const OWNERS: [&str; 3] = ["a", "b", "c"];
        const NAMES: [&str; 4] = ["w", "x", "y", "z"];
        let mine = View { bound: Some(filter("metadata.name=w,metadata.name=x,metadata.name=y")), ..view("spec.owner=a|spec.owner=c") };
        let matches = |name: &str, owner: &str| name != "z" && owner != "b";
        let mut live = std::collections::BTreeMap::<&str, &str>::new();
        let mut seen = std::collections::BTreeMap::<String, String>::new();

        for (index, (name, owner)) in steps.into_iter().enumerate() {
            let (name, after) = (NAMES[name], owner.map(|owner| OWNERS[owner]));
            let before = live.get(name).copied();
            if index == start {
                seen = live.iter().filter(|(name, owner)| matches(name, owner))
                    .map(|(name, owner)| ((*name).to_owned(), (*owner).to_owned())).collect();
            }
            if before.is_none() && after.is_none() {
                continue;
            }
            match after {
                Some(owner) => live.insert(name, owner),
                None => live.remove(name),
            };
            if index < start {
                continue;
            }
            let event = mine.see(&entry(index as u64 + 1, name, before, after));
            if let Some(event) = event {
                let name = event.entity_ref.name().to_owned();
                prop_assert_eq!(seen.contains_key(&name), event.event_type != EventType::Added);
                match event.event_type {
                    EventType::Removed => seen.remove(&name),
                    _ => seen.insert(name, after.expect("there is an entity").to_owned()),
                };
            }
            if index >= start {
                let expected: std::collections::BTreeMap<String, String> = live.iter().filter(|(name, owner)| matches(name, owner))
                    .map(|(name, owner)| ((*name).to_owned(), (*owner).to_owned())).collect();
                prop_assert_eq!(&seen, &expected);
            }
        }
    }

    /// A text is matched without an error or a panic whatever it holds.
    #[test]
    fn any_scalar_is_found_under_its_own_key(value in "[a-zA-Z0-9 ._:/-]{0,40}", key in "[a-zA-Z][a-zA-Z0-9/_-]{0,20}") {
        prop_assume!(!value.starts_with(' ') && !value.ends_with(' '));
        let entity = JsonText::from_trusted(serde_json::json!({ "spec": { &key: &value } }).to_string());
        let parsed = Filter::parse(&[format!("spec.{key}={value}")]).expect("a filter");
        prop_assert!(parsed.matches(&entity));
    }
}
