use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in the event log: 1, 2, 3, … with no gap at append (promise P1). As a position it is exclusive: "processed up
/// to here"; 0 is before the first event.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Offset(u64);

impl Offset {
    /// Before the first event.
    pub const ZERO: Offset = Offset(0);

    /// The offset with this number.
    pub const fn new(number: u64) -> Self {
        Offset(number)
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The offset after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Offset(self.0 + 1)
    }

    /// Padded to 20 digits, so that text sorts as numbers do (CloudEvents `sequence`).
    pub fn padded(self) -> String {
        format!("{:020}", self.0)
    }
}

impl From<u64> for Offset {
    fn from(number: u64) -> Self {
        Offset(number)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
