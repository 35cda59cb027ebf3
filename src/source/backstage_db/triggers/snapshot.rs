//! Which transactions a look has seen: PostgreSQL's `pg_snapshot`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transactions below `xmin` have ended, those from `xmax` on have not begun; between them, `running` have not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Snapshot {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl Snapshot {
    pub(crate) fn xmin(&self) -> u64 {
        self.xmin
    }

    pub(crate) fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Whether all that `other` shows is shown here too.
    pub(crate) fn includes(&self, other: &Snapshot) -> bool {
        other.xmax <= self.xmax && self.running.iter().all(|xid| !other.shows(*xid))
    }

    fn shows(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }
}

impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no snapshot");
        let number = |part: &str| part.parse::<u64>().map_err(|_| wrong());
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(running)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let running = running.split(',').filter(|part| !part.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Snapshot { xmin: number(xmin)?, xmax: number(xmax)?, running })
    }
}

impl TryFrom<String> for Snapshot {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.to_string()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.running.iter().enumerate() {
            write!(formatter, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn a_snapshot_is_written_as_it_was_read() {
        for text in ["10:10:", "10:20:10,14,18"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for text in ["", "10", "10:20", "a:b:", "10:20:x"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_later_look_includes_an_earlier_one() {
        #[track_caller]
        fn check(later: &str, earlier: &str, expected: bool) {
            assert_eq!(snapshot(later).includes(&snapshot(earlier)), expected);
        }

        check("10:20:10,14", "10:20:10,14", true);
        check("10:20:10", "10:20:10,14", true);
        check("10:20:10,14", "10:20:10", false);
        check("14:30:14,25", "10:20:10,14", true);
        check("10:20:10", "10:21:10,20", false);
        check("20:20:", "10:20:10,14", true);
    }
}
