//! `sinks`: where events go.

use std::collections::BTreeMap;
use std::sync::Arc;

use catalog_bridge_api::{BuildContext, Connector, ConnectorKind, Encoding, Offset, Ordering, SinkName};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::refusal::{Refusals, suggestion};
use crate::delivery::{OnExpired, OnOversize, OnRefused, Sink};
use crate::filter::{Changes, Filter, View};
use crate::http::Settings as HttpSettings;
use crate::sinks::CONNECTORS;
use crate::store::Start;

/// One sink: exactly one connector's key, and what all sinks have in common.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct SinkSection {
    /// Which entities, in Backstage's filter syntax, such as `kind=component,spec.owner=team-a`; a list is OR. An entity that enters
    /// the filter is delivered as added, one that leaves it as removed. Default: all.
    #[serde(default)]
    filter: Option<OneOrMany>,
    /// Which updates: `all`; `content` (not those that touch only relations, status and what else Backstage computes); or a list
    /// of paths, such as `[spec.owner]`. Added and removed always pass. Default `all`.
    #[serde(default)]
    changes: Option<OneOrMany>,
    /// Where a new sink begins: `snapshot` (the live entities, then every event), `earliest` (the oldest event kept), `latest`
    /// (what happens from now on), or the offset to begin after. Default `snapshot`.
    #[serde(default)]
    start: StartSection,
    /// How events become messages: `json` (as REST serves them), `cloudevents` (structured) or `cloudevents-binary` (attributes
    /// as headers). Default: the connector's.
    #[serde(default)]
    encoding: Option<Encoding>,
    /// `entity`: in order per entity. `stream`: all in order; asks the destination for one lane. Default `entity`.
    #[serde(default)]
    ordering: Ordering,
    /// An event that the destination refuses for good: `block` stops the sink before it until a person decides, `skip` records
    /// it and goes on. Default `block`.
    #[serde(default)]
    on_refused: OnRefused,
    /// An event that is larger than the destination takes: `reference` sends it without the entity, with a link to it; `refuse`
    /// leaves it to `on_refused`. Default `reference`.
    #[serde(default)]
    on_oversize: OnOversize,
    /// When retention passed the sink's position: `wait` for `catalog-bridge sinks rewind`, or deliver the live state again
    /// (`snapshot`). Default `wait`.
    #[serde(default)]
    on_expired: OnExpired,
    /// Create the topic, queue or stream with safe settings when it is not there. Default false.
    #[serde(default)]
    ensure: bool,
    /// Paths that are left out of the entities, such as `[spec.definition]`; messages say which. Default: none.
    #[serde(default)]
    omit: Vec<String>,
    /// The connector's key.
    #[serde(flatten)]
    #[schemars(skip)]
    connector: Map<String, Value>,
}

/// A text, or a list of texts.
#[derive(Debug, Clone, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    fn texts(&self) -> &[String] {
        match self {
            OneOrMany::One(text) => std::slice::from_ref(text),
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
enum StartSection {
    Word(StartWord),
    /// The offset to begin after.
    After(u64),
}

#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum StartWord {
    Snapshot,
    Earliest,
    Latest,
}

impl Default for StartSection {
    fn default() -> Self {
        StartSection::Word(StartWord::Snapshot)
    }
}

impl From<StartSection> for Start {
    fn from(section: StartSection) -> Start {
        match section {
            StartSection::Word(StartWord::Snapshot) => Start::Snapshot,
            StartSection::Word(StartWord::Earliest) => Start::Earliest,
            StartSection::Word(StartWord::Latest) => Start::Latest,
            StartSection::After(offset) => Start::At(Offset::new(offset)),
        }
    }
}

/// All sinks; no two write to a destination that takes one writer only.
pub(super) fn resolve(
    sections: &BTreeMap<String, SinkSection>,
    http: &HttpSettings,
    refusals: &mut Refusals<'_>,
) -> Vec<Sink> {
    let sinks: Vec<Sink> =
        sections.iter().filter_map(|(name, section)| section.resolve(name, http, refusals)).collect();
    let mut owners: BTreeMap<String, &SinkName> = BTreeMap::new();
    for sink in &sinks {
        let Some(destination) = sink.connector.exclusive_destination() else { continue };
        match owners.get(&destination) {
            Some(first) => refusals.add(
                &["sinks", sink.name.as_str(), sink.protocol],
                format!("writes to {destination}, as sink \"{first}\" does; it takes one writer only"),
            ),
            None => {
                owners.insert(destination, &sink.name);
            }
        }
    }
    sinks
}

impl SinkSection {
    fn resolve(&self, name: &str, http: &HttpSettings, refusals: &mut Refusals<'_>) -> Option<Sink> {
        let path = ["sinks", name];
        let at = |key| [&path[..], &[key]].concat();
        let parsed = SinkName::parse(name).map_err(|error| refusals.add(&path, error.to_string())).ok();
        let filter = self.filter.as_ref().and_then(|filter| resolve_filter(filter, &at("filter"), refusals));
        let changes =
            self.changes.as_ref().map_or(Changes::All, |changes| resolve_changes(changes, &at("changes"), refusals));
        if let Some(index) = self.omit.iter().position(|path| !is_path(path)) {
            let index = index.to_string();
            let message = "this is no path; write the keys from the entity's root, such as spec.definition";
            refusals.add(&[&path[..], &["omit", &index]].concat(), message);
        }
        let (kind, section) = self.connector(&path, refusals)?;
        let context = BuildContext { sink: parsed?, ordering: self.ordering, ensure: self.ensure };
        let connector = build(kind, section, &context, refusals)?;
        Some(Sink {
            name: context.sink,
            protocol: kind.name(),
            encoding: self.encoding.unwrap_or(connector.limits().encoding),
            connector,
            view: View { filter, bound: None, changes, types: Vec::new() },
            omit: self.omit.clone(),
            start: self.start.into(),
            ordering: self.ordering,
            on_refused: self.on_refused,
            on_oversize: self.on_oversize,
            on_expired: self.on_expired,
            public_url: http.public_url.clone(),
            base_path: http.base_path.as_str().to_owned(),
        })
    }

    fn connector(&self, path: &[&str], refusals: &mut Refusals<'_>) -> Option<(&'static dyn ConnectorKind, &Value)> {
        let known: Vec<&str> = CONNECTORS.iter().map(|kind| kind.name()).collect();
        let mut chosen = Vec::new();
        for (key, section) in &self.connector {
            match crate::sinks::connector_kind(key) {
                Some(kind) => chosen.push((kind, section)),
                None => refusals.add(&[path, &[key]].concat(), format!("unknown key; {}", suggestion(key, &known))),
            }
        }
        match chosen.as_slice() {
            [one] => Some(*one),
            [] => {
                refusals.add(path, format!("names no connector; write one of {}", known.join(", ")));
                None
            }
            [_, (second, _), ..] => {
                let message = "stands beside another connector; give each a sink of its own";
                refusals.add(&[path, &[second.name()]].concat(), message);
                None
            }
        }
    }
}

fn build(
    kind: &dyn ConnectorKind,
    section: &Value,
    context: &BuildContext,
    refusals: &mut Refusals<'_>,
) -> Option<Arc<dyn Connector>> {
    match kind.build(section.clone(), context.clone()) {
        Ok(connector) => Some(connector.into()),
        Err(error) => {
            let mut path = vec!["sinks".to_owned(), context.sink.to_string(), kind.name().to_owned()];
            path.extend(error.path);
            refusals.add_at(path, error.message);
            None
        }
    }
}

/// A filter in Backstage's syntax; `None` with a refusal.
pub(super) fn resolve_filter(texts: &OneOrMany, path: &[&str], refusals: &mut Refusals<'_>) -> Option<Filter> {
    Filter::parse(texts.texts()).map_err(|error| refusals.add(path, error.to_string())).ok()
}

fn resolve_changes(texts: &OneOrMany, path: &[&str], refusals: &mut Refusals<'_>) -> Changes {
    if let OneOrMany::One(text) = texts {
        if text.is_empty() || !text.split(',').map(str::trim).all(is_path) {
            refusals.add(path, "write all, content, or a list of paths, such as [spec.owner]");
        }
        return Changes::parse(text);
    }
    let texts = texts.texts();
    if texts.is_empty() {
        refusals.add(path, "an empty list; write all, content, or a list of paths");
    }
    if let Some(index) = texts.iter().position(|text| !is_path(text)) {
        let index = index.to_string();
        refusals.add(
            &[path, &[&index]].concat(),
            "this is no path; write the keys from the entity's root, such as spec.owner",
        );
    }
    Changes::from_paths(texts.iter().map(String::as_str))
}

/// Keys from the entity's root, joined by dots; annotation names may hold slashes.
fn is_path(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(|key| !key.is_empty() && !key.contains([' ', ',', '$', '"', '[']))
}
