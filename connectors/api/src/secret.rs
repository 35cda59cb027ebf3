use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A secret setting: prints as `***` everywhere and is opened at the point of use. `file:/path` is read afresh each time,
/// so that mounted secrets rotate.
#[derive(Clone, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret from its setting: the value itself, or `file:/path`.
    pub fn new(setting: impl Into<String>) -> Self {
        Secret(setting.into())
    }

    /// The secret itself; one trailing line end of a file is left out. The error names the file, never its content.
    pub fn open(&self) -> std::io::Result<String> {
        let Some(path) = self.0.strip_prefix("file:") else { return Ok(self.0.clone()) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| std::io::Error::new(error.kind(), format!("secret file {path}: {error}")))?;
        Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}
