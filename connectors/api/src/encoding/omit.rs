use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Paths to leave out of an entity. What remains stays byte for byte as it was.
#[derive(Debug, Clone)]
pub(super) struct Omit {
    paths: Vec<String>,
}

impl Omit {
    pub(super) fn new(paths: Vec<String>) -> Self {
        Omit { paths: paths.into_iter().filter(|path| !path.is_empty()).collect() }
    }

    /// The entity without the paths, and which of them it had. `None` when it has none of them.
    pub(super) fn apply<'omit, 'text: 'omit>(&'omit self, entity: &'text str) -> Option<(Vec<u8>, Vec<&'omit str>)> {
        if self.paths.is_empty() {
            return None;
        }
        let paths: Vec<Path<'_>> = self.paths.iter().map(|path| Path { whole: path, rest: path }).collect();
        let mut found = Vec::new();
        let reduced = reduce(entity, &paths, &mut found)?;
        found.sort_unstable();
        found.dedup();
        (!found.is_empty()).then_some((reduced, found))
    }
}

#[derive(Clone, Copy)]
struct Path<'path> {
    whole: &'path str,
    /// What is left of it below the object that is looked at.
    rest: &'path str,
}

/// `None` when the text is no object.
fn reduce<'path>(text: &str, paths: &[Path<'path>], found: &mut Vec<&'path str>) -> Option<Vec<u8>> {
    let object: RawObject<'_> = serde_json::from_str(text).ok()?;
    let mut reduced = Vec::with_capacity(text.len());
    reduced.push(b'{');
    for (key, value) in object.0 {
        if let Some(path) = paths.iter().find(|path| path.rest == key) {
            found.push(path.whole);
            continue;
        }
        // Keys may hold dots themselves (annotations), so a path goes on below every key that it begins with.
        let below: Vec<Path<'path>> = paths
            .iter()
            .filter_map(|path| {
                let rest = path.rest.strip_prefix(key.as_str())?.strip_prefix('.')?;
                Some(Path { rest, ..*path })
            })
            .collect();
        if reduced.len() > 1 {
            reduced.push(b',');
        }
        serde_json::to_writer(&mut reduced, &key).expect("a string is JSON");
        reduced.push(b':');
        let inner = if below.is_empty() { None } else { reduce(value.get(), &below, found) };
        reduced.extend_from_slice(inner.as_deref().unwrap_or(value.get().as_bytes()));
    }
    reduced.push(b'}');
    Some(reduced)
}

/// An object's members in their order, values as text.
struct RawObject<'text>(Vec<(String, &'text RawValue)>);

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = RawObject<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(RawObject(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(entity: &str, paths: &[&str], expected: Option<(&str, &[&str])>) {
        let omit = Omit::new(paths.iter().map(|path| (*path).to_owned()).collect());
        let found = omit.apply(entity).map(|(text, omitted)| (String::from_utf8(text).expect("text"), omitted));
        let expected = expected.map(|(text, omitted)| (text.to_owned(), omitted.to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn paths_are_left_out_and_the_rest_stays_as_it_was() {
        check(
            r#"{"z":1.0, "spec":{"definition":"x","n":1e2},"a":[ 1 ]}"#,
            &["spec.definition", "spec.other"],
            Some((r#"{"z":1.0,"spec":{"n":1e2},"a":[ 1 ]}"#, &["spec.definition"])),
        );
        check(r#"{"spec":{"a":1}}"#, &["spec.a"], Some((r#"{"spec":{}}"#, &["spec.a"])));
        check(r#"{"spec":{"a":1}}"#, &["spec"], Some(("{}", &["spec"])));
    }

    #[test]
    fn keys_with_dots_are_met() {
        check(
            r#"{"metadata":{"annotations":{"backstage.io/view-url":"u","x":"y"}}}"#,
            &["metadata.annotations.backstage.io/view-url"],
            Some((r#"{"metadata":{"annotations":{"x":"y"}}}"#, &["metadata.annotations.backstage.io/view-url"])),
        );
    }

    #[test]
    fn an_entity_without_the_paths_is_not_touched() {
        check(r#"{"spec":{"a":1}}"#, &["spec.b", "spec.a.c", ""], None);
        check("[]", &["a"], None);
        check("{}", &[], None);
    }
}
