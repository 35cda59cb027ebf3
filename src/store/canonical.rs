//! The form of a JSON text in which equal contents have equal bytes: no white space, keys sorted, strings unescaped but for
//! `"` and `\`, numbers by their text, a comma after each member and element. What is hashed and compared is this form; it
//! is never stored or shown.
//!
//! Invariants: longer than the text by at most a byte for each object and array; depth is bounded by [`DEPTH_MAX`], so recursion is; of a key that appears twice
//! the last value counts, as for every reader. Linear but for the sorting of keys. Knows nothing of entities.

use sha2::{Digest, Sha256};

/// How deep objects and arrays may be nested: serde_json, which reads the entity later, gives up at the 128th level.
pub(super) const DEPTH_MAX: usize = 127;

/// Why a text has no canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotCanonical {
    /// Nested too deep.
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// No JSON.
    #[error("invalid JSON at byte {0}")]
    Malformed(usize),
}

/// A canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Canonical(Box<[u8]>);

impl Canonical {
    /// Reads a whole JSON value.
    pub(super) fn of(text: &str) -> Result<Self, NotCanonical> {
        let mut writer = Writer {
            text: text.as_bytes(),
            at: 0,
            out: Vec::with_capacity(text.len()),
            members: Vec::new(),
            scratch: Vec::new(),
        };
        writer.value(0)?;
        writer.skip_space();
        if writer.at < writer.text.len() {
            return Err(writer.malformed());
        }
        Ok(Canonical(writer.out.into_boxed_slice()))
    }

    /// SHA-256 of it.
    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }

    /// Its bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One member of an object that is being written, as places in `Writer::out`.
#[derive(Debug, Clone, Copy)]
struct Member {
    start: usize,
    key_end: usize,
    end: usize,
}

struct Writer<'a> {
    text: &'a [u8],
    at: usize,
    out: Vec<u8>,
    /// The members of all objects that are open, innermost last.
    members: Vec<Member>,
    scratch: Vec<u8>,
}

impl Writer<'_> {
    fn value(&mut self, depth: usize) -> Result<(), NotCanonical> {
        self.skip_space();
        match self.peek() {
            Some(b'{' | b'[') if depth == DEPTH_MAX => Err(NotCanonical::TooDeep),
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'"') => self.string(),
            _ => self.plain(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), NotCanonical> {
        let first = self.members.len();
        self.take(b'{')?;
        let start = self.out.len();
        if !self.take_if(b'}') {
            loop {
                self.member(depth)?;
                if !self.take_if(b',') {
                    break;
                }
            }
            self.take(b'}')?;
        }
        self.sort_members(first, start);
        self.members.truncate(first);
        self.out.push(b'}');
        Ok(())
    }

    /// Writes `"key":value,`: each member ends with a comma, so that members can change places.
    fn member(&mut self, depth: usize) -> Result<(), NotCanonical> {
        self.skip_space();
        let start = self.out.len();
        self.string()?;
        let key_end = self.out.len();
        self.take(b':')?;
        self.value(depth)?;
        self.out.push(b',');
        self.members.push(Member { start, key_end, end: self.out.len() });
        Ok(())
    }

    fn sort_members(&mut self, first: usize, start: usize) {
        let members = &mut self.members[first..];
        let out = &self.out;
        let key = |member: &Member| &out[member.start..member.key_end];
        if members.is_sorted_by(|one, next| key(one) < key(next)) {
            return;
        }
        // Stable: of equal keys the last one stays last, and is the one that is kept.
        members.sort_by(|one, other| key(one).cmp(key(other)));
        self.scratch.clear();
        for (index, member) in members.iter().enumerate() {
            let is_last_of_its_key = members.get(index + 1).is_none_or(|next| key(next) != key(member));
            if is_last_of_its_key {
                self.scratch.extend_from_slice(&out[member.start..member.end]);
            }
        }
        self.out.truncate(start);
        self.out.extend_from_slice(&self.scratch);
    }

    fn array(&mut self, depth: usize) -> Result<(), NotCanonical> {
        self.take(b'[')?;
        if !self.take_if(b']') {
            loop {
                self.value(depth)?;
                self.out.push(b',');
                if !self.take_if(b',') {
                    break;
                }
            }
            self.take(b']')?;
        }
        self.out.push(b']');
        Ok(())
    }

    /// A number or a literal, by its text.
    fn plain(&mut self) -> Result<(), NotCanonical> {
        let is_plain = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.');
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|byte| !is_plain(byte)).unwrap_or(rest.len());
        if length == 0 {
            return Err(self.malformed());
        }
        self.out.extend_from_slice(&rest[..length]);
        self.at += length;
        Ok(())
    }

    fn string(&mut self) -> Result<(), NotCanonical> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed());
        }
        self.at += 1;
        self.out.push(b'"');
        loop {
            let rest = &self.text[self.at..];
            let Some(length) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                return Err(self.malformed());
            };
            self.out.extend_from_slice(&rest[..length]);
            self.at += length + 1;
            if rest[length] == b'"' {
                self.out.push(b'"');
                return Ok(());
            }
            self.escape()?;
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<(), NotCanonical> {
        let byte = self.peek().ok_or_else(|| self.malformed())?;
        self.at += 1;
        match byte {
            b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', byte]),
            b'/' => self.out.push(b'/'),
            b'b' => self.out.push(8),
            b'f' => self.out.push(12),
            b'n' => self.out.push(b'\n'),
            b'r' => self.out.push(b'\r'),
            b't' => self.out.push(b'\t'),
            b'u' => {
                let unit = self.hex()?;
                self.unicode(unit)?;
            }
            _ => return Err(self.malformed()),
        }
        Ok(())
    }

    fn unicode(&mut self, unit: u32) -> Result<(), NotCanonical> {
        if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with(b"\\u") {
            let before = self.at;
            self.at += 2;
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                self.code_point(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
                return Ok(());
            }
            self.at = before;
        }
        self.code_point(unit);
        Ok(())
    }

    fn code_point(&mut self, code_point: u32) {
        match char::from_u32(code_point) {
            Some(character @ ('"' | '\\')) => self.out.extend_from_slice(&[b'\\', character as u8]),
            Some(character) => self.out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            // Half of a surrogate pair: three bytes that no UTF-8 text holds, so it equals only itself.
            None => self.out.extend_from_slice(&[
                0xe0 | (code_point >> 12) as u8,
                0x80 | ((code_point >> 6) & 0x3f) as u8,
                0x80 | (code_point & 0x3f) as u8,
            ]),
        }
    }

    fn hex(&mut self) -> Result<u32, NotCanonical> {
        let digits = self.text.get(self.at..self.at + 4).ok_or_else(|| self.malformed())?;
        let mut unit = 0;
        for digit in digits {
            let value = char::from(*digit).to_digit(16).ok_or_else(|| self.malformed())?;
            unit = unit * 16 + value;
        }
        self.at += 4;
        Ok(unit)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Takes a delimiter; an opening one and the colon are written, a comma and a closing one are written by the caller.
    fn take(&mut self, expected: u8) -> Result<(), NotCanonical> {
        if !self.take_if(expected) {
            return Err(self.malformed());
        }
        if matches!(expected, b'{' | b'[' | b':') {
            self.out.push(expected);
        }
        Ok(())
    }

    fn take_if(&mut self, expected: u8) -> bool {
        self.skip_space();
        let is_there = self.peek() == Some(expected);
        self.at += usize::from(is_there);
        is_there
    }

    fn malformed(&self) -> NotCanonical {
        NotCanonical::Malformed(self.at)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    #[track_caller]
    fn check_equal(one: &str, other: &str, expected: bool) {
        let canonical = |text| Canonical::of(text).expect("valid JSON");
        assert_eq!(canonical(one) == canonical(other), expected, "{one} {other}");
        assert_eq!(canonical(one).hash() == canonical(other).hash(), expected, "{one} {other}");
    }

    #[test]
    fn equal_contents_are_equal() {
        check_equal(r#"{"b":1,"a":[1,2]}"#, "{ \"a\" : [ 1 , 2 ],\n\"b\":1}", true);
        check_equal(r#"{"a":{"y":1,"x":{}}}"#, r#"{"a":{"x":{},"y":1}}"#, true);
        check_equal(r#""\u0041\n\/""#, r#""A\u000a/""#, true);
        check_equal(r#""\ud83d\ude00""#, r#""😀""#, true);
        check_equal(r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#, true);
        check_equal(r#""\u0022\u005c""#, r#""\"\\""#, true);
    }

    #[test]
    fn different_contents_differ() {
        check_equal("1.0", "1", false);
        check_equal("1e2", "100", false);
        check_equal("[1,2]", "[2,1]", false);
        check_equal("[]", "{}", false);
        check_equal("[[],[]]", "[[[]]]", false);
        check_equal(r#""\ud800""#, r#""\udc00""#, false);
        check_equal(r#""\ud800x""#, r#""\ud800\u0041""#, false);
        check_equal(r#"{"a":"b\",\"c\":\"d"}"#, r#"{"a":"b","c":"d"}"#, false);
        check_equal("12345678901234567890123", "12345678901234567890124", false);
        check_equal("true", r#""true""#, false);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "[1", "[1 2]", "{\"a\"}", "{1:2}", "\"\\x\"", "\"\\u12\"", "\"", "1 1", "[,]", "{}x"] {
            assert!(matches!(Canonical::of(text), Err(NotCanonical::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded_as_serde_json_bounds_it() {
        for depth in [DEPTH_MAX, DEPTH_MAX + 1, 1_000_000] {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            let ours = Canonical::of(&text);
            assert_eq!(ours.is_ok(), depth <= DEPTH_MAX);
            assert_eq!(ours.is_ok(), serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }

    /// Small values that often agree in parts, with keys and texts that need care.
    pub(in crate::store) fn values() -> impl Strategy<Value = Value> {
        let text = || prop::sample::select(vec!["", "a", "b", "a.b", "\"", "\\", "\n", "é", "\u{7f}", "{", ",", "😀"]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3_u8).prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((text(), inner), 0..4).prop_map(|members| {
                    members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()
                }),
            ]
        })
    }

    proptest! {
        /// P2: what counts as the same content is what any reader of JSON takes for the same.
        #[test]
        fn canonical_forms_are_equal_exactly_when_the_values_are(one in values(), other in values()) {
            let canonical = |text: &str| Canonical::of(text).expect("valid JSON");
            let pretty = serde_json::to_string_pretty(&one).expect("serializes");
            let escaped: String = pretty
                .chars()
                .map(|character| match character as u32 {
                    code @ 0x80.. if code < 0x10000 => format!("\\u{code:04x}"),
                    _ => character.to_string(),
                })
                .collect();

            prop_assert_eq!(canonical(&one.to_string()), canonical(&pretty));
            prop_assert_eq!(canonical(&pretty), canonical(&escaped));
            prop_assert_eq!(canonical(&one.to_string()) == canonical(&other.to_string()), one == other);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in r#"[\[\]{}",:\\u0-9a-f \n]{0,40}"#) {
            let is_json = serde_json::from_str::<Box<serde_json::value::RawValue>>(&text).is_ok();
            if let Ok(canonical) = Canonical::of(&text) {
                let containers = text.matches([']', '}']).count();
                prop_assert!(canonical.as_bytes().len() <= text.len() + containers);
            } else {
                prop_assert!(!is_json, "{text}");
            }
        }
    }
}
