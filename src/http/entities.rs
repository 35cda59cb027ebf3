use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use catalog_bridge_api::{EntityRef, Offset};
use serde::Serialize;
use uuid::Uuid;

use super::auth::Reader;
use super::context::{Context, plain_header};
use super::cursor::Cursor;
use super::events::FILTER;
use super::problem::{Kind, Problem};
use super::query::{Form, Param, Query, Segments, parse_offset};
use super::reply::{ListReply, REPLY_BYTES_MAX, event_size, redacted_entity, text_reply};
use crate::filter::View;
use crate::store::{LogEntry, LogState, ReadLimits, StoreError};

/// Most entities that one request looks at, however few of them it shows.
const LOOKED_AT_MAX: usize = 10_000;
/// Entities that are read at once.
const STEP: usize = 1_000;

pub(super) const ENTITIES_PARAMS: &[Param] = &[
    FILTER,
    Param {
        name: "limit",
        about: "Most entities in the reply.",
        form: Form::Number { min: 1, max: 1000, default: Some(100) },
    },
    Param {
        name: "cursor",
        about: "The `nextCursor` of the page before; repeat the filter with it.",
        form: Form::Text,
    },
];

pub(super) const HISTORY_PARAMS: &[Param] = &[
    Param {
        name: "before",
        about: "Events below this offset, as `nextBefore` of the page before told; without it from the newest.",
        form: Form::Text,
    },
    Param {
        name: "limit",
        about: "Most events in the reply.",
        form: Form::Number { min: 1, max: 1000, default: Some(100) },
    },
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntitiesHead {
    last_event_offset: Offset,
    log_id: Uuid,
    page_info: PageInfo,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PageInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HistoryHead {
    log_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before: Option<Offset>,
}

/// A walk over the state at one offset, page by page.
struct Walk {
    view: View,
    log_id: Uuid,
    at: Offset,
    after: Option<EntityRef>,
    limit: usize,
}

/// `GET /entities`.
pub(super) async fn entities(
    State(context): State<Arc<Context>>,
    Reader(access): Reader,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), ENTITIES_PARAMS)?;
    let view = View { filter: query.filter()?, bound: access.bound, ..View::default() };
    let limit = query.size("limit")?;
    let mut walk = match query.text("cursor") {
        None => {
            let state = context.asked_state().await?;
            Walk { view, log_id: state.log_id, at: state.head, after: None, limit }
        }
        Some(text) => {
            let cursor = Cursor::decode(text, &view)?;
            Walk { view, log_id: cursor.log_id, at: cursor.at, after: Some(cursor.after), limit }
        }
    };
    walk.check(&context).await?;
    let mut reply = ListReply::new(context.reserve_reply().await?);
    let is_more = walk.fill(&context, &mut reply).await?;
    // The log may have got another id while we read; then this page may be another log's.
    context.check_log(walk.log_id).await?;
    Ok(reply.finish(&walk.head(is_more), "items"))
}

impl Walk {
    /// The cursor's log and offset must still be there.
    async fn check(&self, context: &Context) -> Result<(), Problem> {
        context.check_log(self.log_id).await?;
        let mut state = context.known_state();
        if self.at > state.head {
            state = context.asked_state().await?;
        }
        if self.at > state.head {
            return Err(context.offset_ahead("cursor", self.at, &state));
        }
        if self.at < state.oldest {
            return Err(context.offset_expired("cursor", self.at, &state, self.view.filter.as_ref()));
        }
        Ok(())
    }

    /// Reads on until the reply is full or enough was looked at (then the answer is true: there may be more).
    async fn fill(&mut self, context: &Context, reply: &mut ListReply) -> Result<bool, Problem> {
        let mut looked_at = 0;
        let shows_all = self.view.filter.is_none() && self.view.bound.is_none();
        loop {
            let wanted = if shows_all { self.limit - reply.count() } else { STEP };
            let limits = ReadLimits { events_max: wanted, bytes_max: reply.room().max(1) };
            let page = context.store().state_at(self.at, self.after.as_ref(), limits).await;
            let page = page.map_err(|error| self.problem(context, error))?;
            for entry in &page.entries {
                if !self.take(entry, reply) {
                    return Ok(true);
                }
            }
            looked_at += page.entries.len();
            if !page.more || page.entries.is_empty() {
                return Ok(false);
            }
            if reply.count() == self.limit || reply.room() == 0 || looked_at >= LOOKED_AT_MAX {
                return Ok(true);
            }
        }
    }

    /// Shows an entity if the view does; false when it does not fit any more.
    fn take(&mut self, entry: &LogEntry, reply: &mut ListReply) -> bool {
        if reply.count() == self.limit {
            return false;
        }
        let event = &entry.event;
        if self.view.shows(entry) {
            match &event.entity {
                Some(entity) if !reply.fits(entity.len() + 1) => return false,
                Some(entity) => reply.push_text(entity.as_str()),
                None => reply.push_text(&redacted_entity(&event.entity_ref)),
            }
        }
        self.after = Some(event.entity_ref.clone());
        true
    }

    fn head(&self, is_more: bool) -> EntitiesHead {
        let after = self.after.clone().filter(|_| is_more);
        let next_cursor = after.map(|after| Cursor::new(self.at, self.log_id, after, &self.view).encode());
        EntitiesHead { last_event_offset: self.at, log_id: self.log_id, page_info: PageInfo { next_cursor } }
    }

    fn problem(&self, context: &Context, error: StoreError) -> Problem {
        let StoreError::Expired { asked, oldest, head } = error else { return context.problem(error) };
        let state = LogState { oldest, head, ..context.known_state() };
        context.offset_expired("cursor", asked, &state, self.view.filter.as_ref())
    }
}

/// `GET /entities/by-name/{kind}/{namespace}/{name}`: the entity itself, as Backstage answers it.
pub(super) async fn by_name(
    State(context): State<Arc<Context>>,
    Reader(access): Reader,
    Segments(names): Segments<(String, String, String)>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    let entity_ref = parse_names(&names)?;
    let view = View { bound: access.bound, ..View::default() };
    let reservation = context.reserve_reply().await?;
    let last = context.store().latest(&entity_ref).await.map_err(|error| context.problem(error))?;
    let Some(entry) = last.filter(|entry| view.shows(entry)) else { return Err(no_entity(&entity_ref)) };
    let text = match &entry.event.entity {
        Some(entity) => entity.as_str().as_bytes().to_vec(),
        None => redacted_entity(&entity_ref).into_bytes(),
    };
    let mut response = text_reply(reservation, text);
    let log_id = context.known_state().log_id.to_string();
    let headers = response.headers_mut();
    headers.insert("catalog-bridge-offset", plain_header(&entry.event.offset.to_string()));
    headers.insert("catalog-bridge-log-id", plain_header(&log_id));
    Ok(response)
}

/// `GET /entities/by-name/{kind}/{namespace}/{name}/history`: its kept events, newest first.
pub(super) async fn history(
    State(context): State<Arc<Context>>,
    Reader(access): Reader,
    Segments(names): Segments<(String, String, String)>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), HISTORY_PARAMS)?;
    let entity_ref = parse_names(&names)?;
    let limit = query.size("limit")?;
    let before = query.text("before").map(|text| parse_offset("before", text)).transpose()?;
    let view = View { bound: access.bound, ..View::default() };
    let mut reply = ListReply::new(context.reserve_reply().await?);
    let (mut next, mut has_more, mut looked_at) = (before, false, 0);
    while !has_more {
        let limits = ReadLimits { events_max: limit - reply.count() + 1, bytes_max: REPLY_BYTES_MAX };
        let entries =
            context.store().history(&entity_ref, next, limits).await.map_err(|error| context.problem(error))?;
        if entries.is_empty() {
            break;
        }
        looked_at += entries.len();
        has_more = looked_at >= LOOKED_AT_MAX;
        for entry in entries {
            let seen = view.see_alone(&entry);
            if reply.count() == limit || seen.as_ref().is_some_and(|event| !reply.fits(event_size(event))) {
                has_more = true;
                break;
            }
            seen.iter().for_each(|event| reply.push_event(event));
            next = Some(entry.event.offset);
        }
    }
    if reply.count() == 0 && !has_more && before.is_none() {
        return Err(no_entity(&entity_ref));
    }
    let log_id = context.known_state().log_id;
    Ok(reply.finish(&HistoryHead { log_id, next_before: next.filter(|_| has_more) }, "events"))
}

fn parse_names((kind, namespace, name): &(String, String, String)) -> Result<EntityRef, Problem> {
    EntityRef::from_parts(kind, namespace, name)
        .map_err(|error| Problem::of_field(Kind::InvalidParameter, "path", error.to_string()))
}

fn no_entity(entity_ref: &EntityRef) -> Problem {
    Problem::of_field(Kind::NotFound, "path", format!("there is no entity {entity_ref}"))
}
