use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use catalog_bridge_api::{EntityRef, Event, Offset};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::auth::{Access, Reader};
use super::context::Context;
use super::problem::{Kind, Problem};
use super::query::{Form, Param, Query, Segments, parse_offset};
use super::reply::{ListReply, event_size, json_reply, text_reply, write_event};
use crate::filter::View;
use crate::store::{LogEntry, LogState, ReadLimits, StoreError};

/// Most events that one request looks at, however few of them it shows: a rare filter answers in steps.
const LOOKED_AT_MAX: usize = 10_000;
/// Events that are read at once when a view leaves some out.
const STEP: usize = 1_000;

pub(super) const FILTER: Param = Param {
    name: "filter",
    about: "Backstage's filter syntax: key=value or key, joined by commas (AND; the same key twice is OR); repeated, it is \
            OR. The reader sees a view: an entity that begins to match is `added`, one that stops is `removed` with the \
            reason `left-filter`.",
    form: Form::Texts,
};

pub(super) const EVENTS_PARAMS: &[Param] = &[
    Param {
        name: "offset",
        about: "I have processed up to here: events after this offset are answered. Without it from the oldest that is \
                kept; `latest`: from now.",
        form: Form::Text,
    },
    Param {
        name: "limit",
        about: "Most events in the reply.",
        form: Form::Number { min: 1, max: 1000, default: Some(100) },
    },
    Param {
        name: "wait",
        about: "Seconds to wait for an event when there is none yet; 0 answers at once.",
        form: Form::Number { min: 0, max: 55, default: Some(30) },
    },
    FILTER,
    Param {
        name: "changes",
        about: "Which updates: `all`; `content` (not those that touch only relations, status, etag, orphan and managed-by \
                annotations); or paths such as `spec.owner`. Added and removed always pass.",
        form: Form::Texts,
    },
    Param { name: "type", about: "Which types: added, updated, removed.", form: Form::Texts },
    Param {
        name: "logId",
        about: "The log that the offset belongs to, as an earlier reply said; 409 when it is another one now.",
        form: Form::Text,
    },
];

pub(super) const EVENT_PARAMS: &[Param] = &[
    Param {
        name: "entityRef",
        about: "The entity of the event: when the event is no longer kept, or is another log's, its entity's last event is \
                answered, with `expiredOffset`.",
        form: Form::Text,
    },
    Param {
        name: "logId",
        about: "The log that the offset belongs to; without entityRef 409 when it is another one now.",
        form: Form::Text,
    },
];

/// What stands before the events of a reply.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventsHead {
    last_event_offset: Offset,
    head_offset: Offset,
    oldest_offset: Offset,
    log_id: Uuid,
}

/// A request's way through the log.
struct Reading {
    view: View,
    log_id: Uuid,
    /// Processed up to here.
    after: Offset,
    limit: usize,
    /// The newest state seen.
    state: LogState,
}

/// `GET /events`.
pub(super) async fn events(
    State(context): State<Arc<Context>>,
    Reader(access): Reader,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), EVENTS_PARAMS)?;
    let wait = Duration::from_secs(query.number("wait")?.unwrap_or_default());
    let deadline = Instant::now() + wait;
    let view =
        View { filter: query.filter()?, bound: access.bound.clone(), changes: query.changes()?, types: query.types()? };
    let limit = query.size("limit")?;
    let (state, after) = context.starting_point(&query, &view).await?;
    let mut reading = Reading { view, log_id: state.log_id, after, limit, state };
    loop {
        let mut reply = ListReply::new(context.reserve_reply().await?);
        let is_at_head = reading.fill(&context, &mut reply).await?;
        let is_over = reply.count() > 0 || !is_at_head || Instant::now() >= deadline || context.closing.is_cancelled();
        if is_over {
            context.parts.metrics.served(reply.count());
            return Ok(reply.finish(&reading.head(), "events"));
        }
        // While it waits, a reader holds a place and nothing else.
        drop(reply);
        context.wait(&access, reading.after, deadline).await?;
    }
}

impl Context {
    /// The log and the offset that a reader begins at.
    async fn starting_point(&self, query: &Query, view: &View) -> Result<(LogState, Offset), Problem> {
        let asked_log = parse_log_id(query)?;
        let asked = match query.text("offset") {
            Some("latest") => {
                let state = self.asked_state().await?;
                let head = state.head;
                return self.checked_log(state, asked_log, view).map(|state| (state, head));
            }
            Some(text) if text.bytes().any(|byte| !byte.is_ascii_digit()) || text.is_empty() => {
                let shown: String = text.chars().take(40).collect();
                let detail = format!("offset is \"{shown}\"; write a whole number from 0, or latest");
                return Err(Problem::of_field(Kind::InvalidParameter, "offset", detail));
            }
            Some(text) => Some(parse_offset("offset", text)?),
            None => None,
        };
        let mut state = self.known_state();
        let is_suspect = asked_log.is_some_and(|log_id| log_id != state.log_id)
            || asked.is_some_and(|asked| asked > state.head || asked < state.oldest);
        if is_suspect {
            // We may be the one who is behind: a reader is sent away only after asking the store.
            state = self.asked_state().await?;
        }
        let state = self.checked_log(state, asked_log, view)?;
        let after = asked.unwrap_or(state.oldest);
        if after > state.head {
            return Err(self.offset_ahead("offset", after, &state));
        }
        if after < state.oldest {
            return Err(self.offset_expired("offset", after, &state, view.filter.as_ref()));
        }
        Ok((state, after))
    }

    fn checked_log(&self, state: LogState, asked: Option<Uuid>, view: &View) -> Result<LogState, Problem> {
        if asked.is_none_or(|log_id| log_id == state.log_id) {
            return Ok(state);
        }
        Err(self.log_changed(&state, view.filter.as_ref()))
    }

    async fn wait(&self, access: &Access, after: Offset, deadline: Instant) -> Result<(), Problem> {
        let _waiter = self.park(access)?;
        tokio::select! {
            () = self.parts.tail.wait_beyond(after) => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = self.closing.cancelled() => {}
        }
        Ok(())
    }
}

impl Reading {
    fn head(&self) -> EventsHead {
        EventsHead {
            last_event_offset: self.after,
            head_offset: self.state.head.max(self.after),
            oldest_offset: self.state.oldest,
            log_id: self.log_id,
        }
    }

    /// Reads on until the reply is full, enough was looked at, or the head is reached (then the answer is true).
    async fn fill(&mut self, context: &Context, reply: &mut ListReply) -> Result<bool, Problem> {
        let mut looked_at = 0;
        while reply.count() < self.limit && reply.room() > 0 && looked_at < LOOKED_AT_MAX {
            let wanted = if self.view.is_all() { self.limit - reply.count() } else { STEP };
            let limits = ReadLimits { events_max: wanted, bytes_max: reply.room() };
            let page = match context.parts.tail.read(self.after, limits).await {
                Ok(page) => page,
                Err(error) => return Err(self.problem(context, error).await),
            };
            if page.state.log_id != self.log_id {
                return Err(context.log_changed(&page.state, self.view.filter.as_ref()));
            }
            self.state = page.state;
            if page.entries.is_empty() {
                return Ok(true);
            }
            looked_at += page.entries.len();
            for entry in &page.entries {
                if !self.take(entry, reply) {
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Shows an entry if the view does; false when it does not fit any more.
    fn take(&mut self, entry: &LogEntry, reply: &mut ListReply) -> bool {
        if reply.count() == self.limit {
            return false;
        }
        if let Some(event) = self.view.see(entry) {
            if !reply.fits(event_size(&event)) {
                return false;
            }
            reply.push_event(&event);
        }
        self.after = entry.event.offset;
        true
    }

    /// A failed read. Retention may have passed us, or the log changed under us, which comes first.
    async fn problem(&self, context: &Context, error: StoreError) -> Problem {
        if let Err(changed) = context.check_log(self.log_id).await {
            return changed;
        }
        match error {
            StoreError::Expired { asked, oldest, head } => {
                let state = LogState { oldest, head, ..self.state.clone() };
                context.offset_expired("offset", asked, &state, self.view.filter.as_ref())
            }
            error => context.problem(error),
        }
    }
}

/// `GET /events/head`.
pub(super) async fn head(
    State(context): State<Arc<Context>>,
    Reader(_): Reader,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    let state = context.asked_state().await?;
    Ok(json_reply(&EventsHead {
        last_event_offset: state.head,
        head_offset: state.head,
        oldest_offset: state.oldest,
        log_id: state.log_id,
    }))
}

/// `GET /events/{offset}`: what the references of oversize messages lead to.
pub(super) async fn event(
    State(context): State<Arc<Context>>,
    Reader(access): Reader,
    Segments(offset): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), EVENT_PARAMS)?;
    let offset = parse_offset("offset", &offset)?;
    let stand_in = query.text("entityRef").map(|text| parse_ref("entityRef", text)).transpose()?;
    let asked_log = parse_log_id(&query)?;
    let view = View { bound: access.bound.clone(), ..View::default() };
    let reservation = context.reserve_reply().await?;

    let entry = context.store().event(offset).await.map_err(|error| context.problem(error))?;
    // Asked after the read: the same offset of another log is another event.
    let state = context.asked_state().await?;
    let is_other_log = asked_log.is_some_and(|log_id| log_id != state.log_id);
    let entry = entry.filter(|_| !is_other_log);
    if let Some(event) = entry.as_ref().and_then(|entry| view.see_alone(entry)) {
        return Ok(text_reply(reservation, event_text(&event)));
    }

    let is_gone = is_other_log || (entry.is_none() && offset <= state.head && offset > Offset::ZERO);
    if is_gone && let Some(entity_ref) = stand_in {
        let last = context.store().latest(&entity_ref).await.map_err(|error| context.problem(error))?;
        if let Some(event) = last.as_ref().and_then(|entry| view.see_alone(entry)) {
            let mut text = event_text(&event);
            text.pop();
            text.extend_from_slice(format!(",\"expiredOffset\":{offset}}}").as_bytes());
            return Ok(text_reply(reservation, text));
        }
    }
    if is_other_log {
        return Err(context.log_changed(&state, None));
    }
    // Whether a token with a filter would have seen an event that is gone is not known: it is told nothing.
    if is_gone && access.bound.is_none() {
        let detail = format!("event {offset} is no longer kept; its entity's state is at /entities/by-name");
        return Err(Problem::of_field(Kind::EventExpired, "offset", detail)
            .with("headOffset", state.head.get())
            .with("oldestOffset", state.oldest.get()));
    }
    Err(Problem::of_field(Kind::NotFound, "offset", format!("there is no event {offset}")))
}

fn parse_log_id(query: &Query) -> Result<Option<Uuid>, Problem> {
    let Some(text) = query.text("logId") else { return Ok(None) };
    let parsed = Uuid::try_parse(text).map_err(|_| {
        Problem::of_field(Kind::InvalidParameter, "logId", "logId is no UUID; send it back as a reply told it")
    })?;
    Ok(Some(parsed))
}

fn event_text(event: &Event) -> Vec<u8> {
    let mut text = Vec::with_capacity(event_size(event));
    write_event(&mut text, event);
    text
}

pub(super) fn parse_ref(field: &str, text: &str) -> Result<EntityRef, Problem> {
    EntityRef::parse(text).map_err(|error| Problem::of_field(Kind::InvalidParameter, field, error.to_string()))
}
