use std::fmt;

use catalog_bridge_api::Changed;
use serde::{Deserialize, Serialize};

/// Which updates a reader wants. Added and removed always pass.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Changes {
    /// Every update.
    #[default]
    All,
    /// Not those that touch only what Backstage computes: relations, status, etag, orphan and managed-by annotations.
    Content,
    /// Those that touch one of these paths, what lies in it, or what holds it.
    Paths(Vec<String>),
}

/// What `content` leaves out.
const COMPUTED: [&str; 6] = [
    "relations",
    "status",
    "metadata.etag",
    "metadata.annotations.backstage.io/orphan",
    "metadata.annotations.backstage.io/managed-by-location",
    "metadata.annotations.backstage.io/managed-by-origin-location",
];

impl Changes {
    /// Parses `all`, `content`, or paths separated by commas. Nothing but commas is `all`.
    pub fn parse(text: &str) -> Changes {
        match text.trim() {
            "all" => Changes::All,
            "content" => Changes::Content,
            paths => Changes::from_paths(paths.split(',').map(str::trim)),
        }
    }

    /// Updates of these paths; without any, all updates.
    pub fn from_paths<'text>(paths: impl IntoIterator<Item = &'text str>) -> Changes {
        let paths: Vec<String> = paths.into_iter().filter(|path| !path.is_empty()).map(str::to_owned).collect();
        if paths.is_empty() { Changes::All } else { Changes::Paths(paths) }
    }

    /// Whether an update that changed this passes. What is not known (truncated, redacted) passes.
    pub fn pass(&self, changed: Option<&Changed>) -> bool {
        let Some(changed) = changed.filter(|changed| !changed.truncated) else { return true };
        match self {
            Changes::All => true,
            Changes::Content => {
                changed.paths.is_empty()
                    || !changed.paths.iter().all(|path| COMPUTED.iter().any(|computed| lies_in(path, computed)))
            }
            Changes::Paths(wanted) => changed
                .paths
                .iter()
                .any(|path| wanted.iter().any(|wanted| lies_in(path, wanted) || lies_in(wanted, path))),
        }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Changes::All => formatter.write_str("all"),
            Changes::Content => formatter.write_str("content"),
            Changes::Paths(paths) => formatter.write_str(&paths.join(",")),
        }
    }
}

impl From<Changes> for String {
    fn from(changes: Changes) -> String {
        changes.to_string()
    }
}

impl From<String> for Changes {
    fn from(text: String) -> Changes {
        Changes::parse(&text)
    }
}

/// Whether `path` is `outer` or lies in it; keys are compared as filters compare them.
fn lies_in(path: &str, outer: &str) -> bool {
    let (path, outer) = (path.as_bytes(), outer.as_bytes());
    path.len() >= outer.len()
        && path[..outer.len()].eq_ignore_ascii_case(outer)
        && path.get(outer.len()).is_none_or(|next| matches!(next, b'.' | b'['))
}
