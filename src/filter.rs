//! Backstage's filter syntax, and views: what a reader with a filter sees of the log.
//!
//! Keeps P4 for filtered readers: the filtered state at an offset plus the filtered events after it is the filtered live
//! state, because a view judges every event by the state before and after it. Pure: JSON text in, answer out. Knows nothing
//! of HTTP, sinks or stores; REST, tokens, `/entities` and sinks all use these functions, so that they cannot differ.

use std::fmt;

use catalog_bridge_api::{Changed, EntityRef, Event, EventType, JsonText, Reason};

use crate::store::LogEntry;

mod changes;
mod search;

pub use changes::Changes;

/// Most different keys of a filter, over all its alternatives.
const KEYS_MAX: usize = 128;
/// Longest text of one alternative, in bytes.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// A filter in Backstage's syntax: a list of alternatives (OR), each a list of conditions joined by `,` (AND), each
/// `key=value` or a bare `key` (it exists). The same key twice in one alternative means either value. Keys and values are
/// compared case-insensitively with what Backstage puts into its search index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The different conditions of all alternatives.
    conditions: Vec<Condition>,
    /// Each alternative as the set of its conditions, by bit.
    alternatives: Vec<u128>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    /// Lower case.
    key: String,
    /// Lower case; `None`: the key exists.
    values: Option<Vec<String>>,
}

/// A filter that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Nothing stands in it.
    #[error("an empty filter; write key=value or key, such as kind=component")]
    Empty,
    /// A condition without a key.
    #[error("\"{0}\" is no condition; write key=value or key, such as kind=component")]
    NoKey(String),
    /// More than a filter may hold.
    #[error("the filter is too large: at most {KEYS_MAX} conditions, and {TEXT_BYTES_MAX} bytes in each alternative")]
    TooLarge,
}

/// What a filter says of a state whose body may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    No,
    /// The body is no longer kept, and the ref alone does not decide.
    Unknown,
    Yes,
}

impl Filter {
    /// Parses the alternatives, such as the values of a repeated `filter=` parameter.
    pub fn parse(alternatives: &[String]) -> Result<Filter, FilterError> {
        if alternatives.is_empty() {
            return Err(FilterError::Empty);
        }
        let mut filter = Filter { conditions: Vec::new(), alternatives: Vec::new() };
        for text in alternatives {
            if text.len() > TEXT_BYTES_MAX {
                return Err(FilterError::TooLarge);
            }
            let mut bits = 0;
            for condition in parse_alternative(text)? {
                bits |= 1 << filter.intern(condition)?;
            }
            if !filter.alternatives.contains(&bits) {
                filter.alternatives.push(bits);
            }
        }
        Ok(filter)
    }

    /// Whether an entity matches.
    pub fn matches(&self, entity: &JsonText) -> bool {
        self.is_met_by(search::matched(&self.conditions, entity))
    }

    /// The alternatives in a canonical form, which parse to the same filter.
    pub fn to_alternatives(&self) -> Vec<String> {
        self.alternatives.iter().map(|alternative| self.alternative_text(*alternative)).collect()
    }

    fn alternative_text(&self, alternative: u128) -> String {
        let mut texts = Vec::new();
        for (bit, Condition { key, values }) in self.conditions.iter().enumerate() {
            match values {
                _ if alternative & (1 << bit) == 0 => {}
                None => texts.push(key.clone()),
                Some(values) => texts.extend(values.iter().map(|value| format!("{key}={value}"))),
            }
        }
        texts.join(",")
    }

    fn intern(&mut self, condition: Condition) -> Result<usize, FilterError> {
        if let Some(known) = self.conditions.iter().position(|known| *known == condition) {
            return Ok(known);
        }
        if self.conditions.len() == KEYS_MAX {
            return Err(FilterError::TooLarge);
        }
        self.conditions.push(condition);
        Ok(self.conditions.len() - 1)
    }

    fn is_met_by(&self, matched: u128) -> bool {
        self.alternatives.iter().any(|alternative| matched & alternative == *alternative)
    }

    fn judge(&self, entity_ref: &EntityRef, entity: Option<&JsonText>) -> Verdict {
        if let Some(entity) = entity {
            return if self.matches(entity) { Verdict::Yes } else { Verdict::No };
        }
        let (met, open) = self.by_ref(entity_ref);
        if self.is_met_by(met) {
            Verdict::Yes
        } else if self.is_met_by(met | open) {
            Verdict::Unknown
        } else {
            Verdict::No
        }
    }

    /// The conditions that the ref alone meets, and those that it leaves open.
    fn by_ref(&self, entity_ref: &EntityRef) -> (u128, u128) {
        let (mut met, mut open) = (0, 0);
        for (bit, condition) in self.conditions.iter().enumerate() {
            let known = match condition.key.as_str() {
                "kind" => entity_ref.kind(),
                "metadata.namespace" => entity_ref.namespace(),
                "metadata.name" => entity_ref.name(),
                _ => {
                    open |= 1 << bit;
                    continue;
                }
            };
            if condition.values.as_ref().is_none_or(|values| values.iter().any(|value| value == known)) {
                met |= 1 << bit;
            }
        }
        (met, open)
    }
}

/// The alternatives, joined by ` | `: a canonical text for fingerprints and status.
impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.to_alternatives().join(" | "))
    }
}

fn parse_alternative(text: &str) -> Result<Vec<Condition>, FilterError> {
    let mut conditions: Vec<Condition> = Vec::new();
    for statement in text.split(',').map(str::trim).filter(|statement| !statement.is_empty()) {
        let (key, value) = match statement.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim().to_lowercase())),
            None => (statement, None),
        };
        if key.is_empty() {
            return Err(FilterError::NoKey(statement.chars().take(200).collect()));
        }
        let key = key.to_lowercase();
        let known = conditions.iter().position(|condition| condition.key == key).unwrap_or_else(|| {
            conditions.push(Condition { key, values: None });
            conditions.len() - 1
        });
        // A bare key beside values of the same key adds nothing: who has one of the values has the key.
        if let Some(value) = value {
            let values = conditions[known].values.get_or_insert_with(Vec::new);
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
    if conditions.is_empty() { Err(FilterError::Empty) } else { Ok(conditions) }
}

/// What a reader sees of the log. The default sees everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// What the reader asked for.
    pub filter: Option<Filter>,
    /// What its token is bound to; same meaning.
    pub bound: Option<Filter>,
    /// Which updates it wants.
    pub changes: Changes,
    /// Which event types it wants, as it sees them; empty: all.
    pub types: Vec<EventType>,
}

impl View {
    /// True when everything passes as it is.
    pub fn is_all(&self) -> bool {
        self.filter.is_none() && self.bound.is_none() && self.changes == Changes::All && self.types.is_empty()
    }

    /// Filters, `changes` and types in one canonical text: equal texts show the same events.
    pub fn describe(&self) -> String {
        let filter = |filter: &Option<Filter>| filter.as_ref().map(Filter::to_string).unwrap_or_default();
        let types = self.types.iter().map(|known| known.as_str()).collect::<Vec<_>>().join(",");
        let (own, bound) = (filter(&self.filter), filter(&self.bound));
        serde_json::json!([own, bound, self.changes.to_string(), types]).to_string()
    }

    /// What the reader sees of an event, with the rules of a Kubernetes watch with a selector: entering the filter is
    /// `added`, leaving it is `removed` with the reason `left-filter`, staying in it is the event as it is, staying out of
    /// it is nothing. A removal is judged by the last state, and passes when that is no longer kept.
    ///
    /// Of a redacted state only the ref is left. Where the ref does not decide, the state before counts as seen (the reader
    /// may hold it, and must learn that it is gone), the state after as not seen.
    pub fn see(&self, entry: &LogEntry) -> Option<Event> {
        self.of_wanted_type(self.see_any_type(entry, Verdict::Unknown)?)
    }

    /// What the reader sees of an entry that it asked for by itself, outside the order of the log. At or below the oldest
    /// offset retention takes the state before, so that there a doubt says nothing of the reader: it counts as not seen, or
    /// a token could ask for what its filter hides.
    pub fn see_alone(&self, entry: &LogEntry) -> Option<Event> {
        self.of_wanted_type(self.see_any_type(entry, Verdict::Yes)?)
    }

    /// What a sink sees of an entry of a walk. Entries come as `added`, so there is no state before them; when the sink had
    /// delivered before (`again`), an entity that does not match now may have matched then, and is told as `left-filter`.
    pub fn see_in_walk(&self, entry: &LogEntry, again: bool) -> Option<Event> {
        let seen = self.see(entry);
        let is_outside = seen.is_none() && entry.event.event_type != EventType::Removed && !self.shows(entry);
        if again && is_outside && (self.types.is_empty() || self.types.contains(&EventType::Removed)) {
            return Some(left_filter(&entry.event));
        }
        seen
    }

    /// Whether the reader sees the state that this event left behind; never true for a removal.
    pub fn shows(&self, entry: &LogEntry) -> bool {
        entry.event.event_type != EventType::Removed
            && self.judge(&entry.event.entity_ref, entry.event.entity.as_ref()) == Verdict::Yes
    }

    fn of_wanted_type(&self, event: Event) -> Option<Event> {
        (self.types.is_empty() || self.types.contains(&event.event_type)).then_some(event)
    }

    /// The state before counts as seen from the verdict `seen_from` on.
    fn see_any_type(&self, entry: &LogEntry, seen_from: Verdict) -> Option<Event> {
        let event = &entry.event;
        if self.filter.is_none() && self.bound.is_none() {
            return self.passes_changes(event).then(|| event.clone());
        }
        let was_seen = event.event_type != EventType::Added
            && self.judge(&event.entity_ref, entry.previous_entity.as_ref()) >= seen_from;
        match (was_seen, self.shows(entry)) {
            (false, false) => None,
            (false, true) => {
                Some(Event { event_type: EventType::Added, changed: None, previous_offset: None, ..event.clone() })
            }
            (true, false) if event.event_type == EventType::Removed => Some(event.clone()),
            (true, false) => Some(left_filter(event)),
            (true, true) => self.passes_changes(event).then(|| event.clone()),
        }
    }

    fn passes_changes(&self, event: &Event) -> bool {
        event.event_type != EventType::Updated || self.changes.pass(event.changed.as_ref())
    }

    fn judge(&self, entity_ref: &EntityRef, entity: Option<&JsonText>) -> Verdict {
        let filters = self.filter.iter().chain(&self.bound);
        filters.map(|filter| filter.judge(entity_ref, entity)).min().unwrap_or(Verdict::Yes)
    }
}

fn left_filter(event: &Event) -> Event {
    Event {
        event_type: EventType::Removed,
        entity: None,
        changed: None::<Changed>,
        reason: Some(Reason::LeftFilter),
        ..event.clone()
    }
}

#[cfg(test)]
mod tests;
