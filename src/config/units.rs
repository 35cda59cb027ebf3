//! Sizes, periods and shares as people write them: `5GiB`, `30d`, `50%`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A number of bytes: `5GiB`, `64MiB`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// A span of time: `30d`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period(pub(super) Duration);

/// A share of a whole: `50%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share(pub(super) f64);

const SIZES: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// In milliseconds; longest unit names first.
const PERIODS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Splits `1.5GiB` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

impl Size {
    fn parse(text: &str) -> Option<Size> {
        let (number, unit) = split(text)?;
        let factor = if unit.is_empty() { 1 } else { SIZES.iter().find(|(name, _)| *name == unit)?.1 };
        let bytes = number * factor as f64;
        (bytes < 9e18).then_some(Size(bytes as u64))
    }
}

impl Period {
    fn parse(text: &str) -> Option<Period> {
        let (number, unit) = split(text)?;
        let factor = PERIODS.iter().find(|(name, _)| *name == unit)?.1;
        let milliseconds = number * factor as f64;
        // A thousand years: far above any meaning, far below where clocks overflow.
        (milliseconds <= 3.2e13).then_some(Period(Duration::from_millis(milliseconds as u64)))
    }
}

impl Share {
    fn parse(text: &str) -> Option<Share> {
        let (number, unit) = split(text)?;
        (unit == "%" && number <= 100.0).then_some(Share(number / 100.0))
    }
}

struct TextVisitor<T> {
    parse: fn(&str) -> Option<T>,
    from_number: fn(u64) -> Option<T>,
    expected: &'static str,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::custom(format!("\"{text}\" is not {}", self.expected)))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.from_number)(number).ok_or_else(|| E::custom(format!("{number} has no unit; write {}", self.expected)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(format!("{number} is not {}", self.expected)))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor {
            parse: Size::parse,
            from_number: |bytes| Some(Size(bytes)),
            expected: "a size such as 512KiB, 64MiB or 5GiB",
        })
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor {
            parse: Period::parse,
            from_number: |_| None,
            expected: "a period such as 250ms, 30s, 10m, 12h or 30d",
        })
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor {
            parse: Share::parse,
            from_number: |_| None,
            expected: "a share such as 50%",
        })
    }
}

const SIZE_PATTERN: &str = "^[0-9.]+ *([KMGT]iB|[kKMGT]?B)?$";
const PERIOD_PATTERN: &str = "^[0-9.]+ *(ms|s|m|h|d)$";
const SHARE_PATTERN: &str = "^[0-9.]+ *%$";

/// The patterns of the schema, and what the documentation calls such a value.
pub(super) const UNITS: [(&str, &str); 3] =
    [(SIZE_PATTERN, "size"), (PERIOD_PATTERN, "period"), (SHARE_PATTERN, "share")];

macro_rules! schema {
    ($name:ident, $pattern:expr) => {
        impl schemars::JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": ["string", "integer"], "pattern": $pattern })
            }
        }
    };
}

schema!(Size, SIZE_PATTERN);
schema!(Period, PERIOD_PATTERN);
schema!(Share, SHARE_PATTERN);

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::Error;

    use super::*;

    #[test]
    fn sizes_periods_and_shares_are_read_with_their_units() {
        for (text, bytes) in [("5GiB", 5 << 30), ("1.5 MiB", 3 << 19), ("10MB", 10_000_000), ("7", 7), ("0B", 0)] {
            assert_eq!(Size::parse(text), Some(Size(bytes)), "{text}");
        }
        for (text, milliseconds) in [("250ms", 250), ("30d", 2_592_000_000), ("1.5s", 1_500), ("2 h", 7_200_000)] {
            assert_eq!(Period::parse(text), Some(Period(Duration::from_millis(milliseconds))), "{text}");
        }
        assert_eq!(Share::parse("50%"), Some(Share(0.5)));
    }

    #[test]
    fn what_has_no_or_another_unit_is_refused() {
        for text in ["", "GiB", "5gib", "-1MiB", "1e400GiB", "5d", "99999999TiB"] {
            assert_eq!(Size::parse(text), None, "{text}");
        }
        for text in ["30", "30 days", "-1s", "d", "999999999d", "1.2.3s"] {
            assert_eq!(Period::parse(text), None, "{text}");
        }
        for text in ["50", "101%", "-5%"] {
            assert_eq!(Share::parse(text), None, "{text}");
        }
        let number: Result<Period, Error> = Period::deserialize(30_u64.into_deserializer());
        assert!(number.is_err_and(|error| error.to_string().contains("no unit")));
    }
}
