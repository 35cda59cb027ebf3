use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A secret setting: prints as `***` everywhere and is opened at the point of use. `file:/path` is read afresh each time,
/// so that mounted secrets rotate.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret from its setting: the value itself, or `file:/path`.
    pub fn new(setting: impl Into<String>) -> Self {
        Secret(setting.into())
    }

    /// Whether it is read from a file, so that its value is known only when it is opened.
    pub fn is_file(&self) -> bool {
        self.0.starts_with("file:")
    }

    /// The secret itself; one trailing line end of a file is left out. The error names the file, never its content.
    pub fn open(&self) -> std::io::Result<String> {
        let Some(path) = self.0.strip_prefix("file:") else { return Ok(self.0.clone()) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| std::io::Error::new(error.kind(), format!("secret file {path}: {error}")))?;
        Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
    }
}

/// `writeOnly` tells the config's loader to keep the value out of every error.
impl schemars::JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "writeOnly": true })
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
