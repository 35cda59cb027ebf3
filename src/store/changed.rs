//! The JSON paths in which two contents differ.
//!
//! Walks both canonical forms side by side, once. An array or a scalar is one leaf; a key that came or went is one path.

use std::cmp::Ordering;

use catalog_bridge_api::Changed;

use super::canonical::Canonical;

/// Most paths of one event.
const PATHS_MAX: usize = 32;
/// A longer path is not named: the event then counts as one that may have changed anything.
const PATH_BYTES_MAX: usize = 1024;

/// What changed from `before` to `after`.
pub(super) fn changed(before: &Canonical, after: &Canonical) -> Changed {
    let mut walk = Walk { path: String::new(), paths: Vec::new(), truncated: false };
    let (before, after) = (&mut Reader { rest: before.as_bytes() }, &mut Reader { rest: after.as_bytes() });
    walk.values(before, after);
    walk.paths.sort_unstable();
    Changed { paths: walk.paths, truncated: walk.truncated }
}

/// Of an update whose body before it is not known (it was redacted): anything may have changed.
pub(super) fn unknown() -> Changed {
    Changed { paths: Vec::new(), truncated: true }
}

struct Walk {
    path: String,
    paths: Vec<String>,
    truncated: bool,
}

impl Walk {
    fn values(&mut self, before: &mut Reader<'_>, after: &mut Reader<'_>) {
        if before.at_object() && after.at_object() {
            self.objects(before, after);
        } else if before.value() != after.value() {
            self.differs();
        }
    }

    fn objects(&mut self, before: &mut Reader<'_>, after: &mut Reader<'_>) {
        before.open();
        after.open();
        let (mut old, mut new) = (before.key(), after.key());
        loop {
            let order = match (old, new) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.cmp(new),
            };
            let length = self.path.len();
            self.enter(if order == Ordering::Greater { new } else { old });
            match order {
                Ordering::Less => {
                    before.value();
                    self.differs();
                }
                Ordering::Greater => {
                    after.value();
                    self.differs();
                }
                Ordering::Equal => self.values(before, after),
            }
            self.path.truncate(length);
            if order != Ordering::Greater {
                old = before.next_key();
            }
            if order != Ordering::Less {
                new = after.next_key();
            }
        }
    }

    /// `key` is as the canonical form has it, with its quotes.
    fn enter(&mut self, key: Option<&[u8]>) {
        let key = key.unwrap_or_default();
        if !self.path.is_empty() {
            self.path.push('.');
        }
        let inner = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\"")).unwrap_or(key);
        // A key too long to be named need not be copied whole.
        let inner = &inner[..inner.len().min(PATH_BYTES_MAX * 2)];
        let text = String::from_utf8_lossy(inner);
        let mut is_escaped = false;
        for character in text.chars() {
            if character == '\\' && !is_escaped {
                is_escaped = true;
                continue;
            }
            is_escaped = false;
            self.path.push(character);
        }
    }

    fn differs(&mut self) {
        if self.paths.len() == PATHS_MAX || self.path.len() > PATH_BYTES_MAX || self.path.is_empty() {
            self.truncated = true;
        } else {
            self.paths.push(self.path.clone());
        }
    }
}

/// Reads a canonical form, which is well formed by construction.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn at_object(&self) -> bool {
        self.rest.first() == Some(&b'{')
    }

    fn open(&mut self) {
        self.rest = &self.rest[1..];
    }

    /// The next member's key with its quotes; `None` at the object's end, which is read too.
    fn key(&mut self) -> Option<&'a [u8]> {
        if self.rest.first() == Some(&b'}') {
            self.rest = &self.rest[1..];
            return None;
        }
        let key = self.take(string_length(self.rest));
        self.take(1);
        Some(key)
    }

    /// The same after a value.
    fn next_key(&mut self) -> Option<&'a [u8]> {
        self.take(1);
        self.key()
    }

    /// Reads a whole value.
    fn value(&mut self) -> &'a [u8] {
        let mut depth = 0_usize;
        let mut at = 0;
        while let Some(byte) = self.rest.get(at) {
            match byte {
                b'"' => at += string_length(&self.rest[at..]) - 1,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => break,
                _ => {}
            }
            at += 1;
        }
        self.take(at)
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }
}

/// The length of the string that the text begins with, with its quotes.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    loop {
        match text.get(at) {
            Some(b'\\') => at += 2,
            Some(b'"') => return at + 1,
            Some(_) => at += 1,
            None => return text.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::canonical::tests::values;
    use super::*;

    #[track_caller]
    fn check(before: &str, after: &str, expected: &[&str]) {
        let canonical = |text| Canonical::of(text).expect("valid JSON");
        let found = changed(&canonical(before), &canonical(after));
        assert_eq!(found.paths, expected, "{before} {after}");
        assert!(!found.truncated);
    }

    #[test]
    fn paths_name_what_differs() {
        check(r#"{"a":1}"#, r#"{"a":2}"#, &["a"]);
        check(r#"{"a":{"b":1,"c":2}}"#, r#"{"a":{"c":3,"b":1}}"#, &["a.c"]);
        check(r#"{"a":[1,{"b":1}]}"#, r#"{"a":[1,{"b":2}]}"#, &["a"]);
        check(r#"{"a":{"b":1}}"#, r#"{"c":{"b":1}}"#, &["a", "c"]);
        check(r#"{"a":{}}"#, r#"{"a":{"x":{"y":1}}}"#, &["a.x"]);
        check(r#"{"a":{"b":1}}"#, r#"{"a":[{"b":1}]}"#, &["a"]);
        check(r#"{"m":{"a.b/c":"1"}}"#, r#"{"m":{"a.b/c":"2"}}"#, &["m.a.b/c"]);
        check(r#"{"q\"\\":1,"z":[]}"#, r#"{"q\"\\":2,"z":[]}"#, &["q\"\\"]);
        check(r#"{"a":"x,}","b":1}"#, r#"{"a":"x,}","b":"2]"}"#, &["b"]);
        check(r#"{"é":1}"#, r#"{"é":2}"#, &["é"]);
        check("{}", "{}", &[]);
        check(r#"{"":{"":1}}"#, r#"{"":{"":1,"a":1}}"#, &["a"]);
    }

    #[test]
    fn more_paths_than_allowed_are_cut_and_said_so() {
        let object = |value: u32| {
            let members: Vec<String> = (0..40).map(|key| format!("\"k{key:02}\":{value}")).collect();
            Canonical::of(&format!("{{{}}}", members.join(","))).expect("valid JSON")
        };

        let found = changed(&object(1), &object(2));

        assert_eq!(found.paths.len(), 32);
        assert!(found.truncated);
        assert!(found.paths.is_sorted());
    }

    #[test]
    fn a_root_that_is_no_object_may_have_changed_anywhere() {
        let canonical = |text| Canonical::of(text).expect("valid JSON");
        assert_eq!(changed(&canonical("[1]"), &canonical("[2]")), unknown());
    }

    proptest::proptest! {
        /// Every path that is named differs, and nothing differs beside the named ones.
        #[test]
        fn what_is_named_is_what_differs(one in values(), other in values()) {
            let canonical = |value: &Value| Canonical::of(&value.to_string()).expect("valid JSON");

            let found = changed(&canonical(&one), &canonical(&other));

            proptest::prop_assert_eq!(found.paths.is_empty() && !found.truncated, one == other);
            let (Value::Object(one), Value::Object(other)) = (&one, &other) else { return Ok(()) };
            for key in one.keys().chain(other.keys()) {
                let differs = one.get(key) != other.get(key);
                let is_named = found.truncated || found.paths.iter().any(|path| path.starts_with(key.as_str()));
                proptest::prop_assert!(is_named || !differs, "{} {:?}", key, found);
            }
        }
    }
}
