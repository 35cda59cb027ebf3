use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use catalog_bridge_api::{SinkName, SourceName};
use serde_json::json;
use tracing::info;

use super::ControlError;
use super::auth::{Access, Operator};
use super::context::Context;
use super::events::parse_ref;
use super::problem::{Kind, Problem};
use super::query::{Form, Param, Query, Segments, parse_offset};
use super::reply::json_reply;
use crate::store::{ConsumerKind, SinkCommand};

pub(super) const SKIP_PARAMS: &[Param] =
    &[Param { name: "offset", about: "The offset on which the sink is blocked.", form: Form::Text }];

pub(super) const REWIND_PARAMS: &[Param] = &[Param {
    name: "to",
    about: "`snapshot` (the live state again, then what follows), `earliest`, `latest`, or an offset: what lies after it \
            is delivered again.",
    form: Form::Text,
}];

pub(super) const PREVIEW_PARAMS: &[Param] =
    &[Param { name: "limit", about: "Most messages.", form: Form::Number { min: 1, max: 100, default: Some(10) } }];

pub(super) const RECONCILE_PARAMS: &[Param] = &[Param {
    name: "confirm",
    about: "Also lets the removals go that the mass removal guard holds.",
    form: Form::Flag,
}];

pub(super) const NEW_ID_PARAMS: &[Param] =
    &[Param { name: "reason", about: "Why, for the log; such as a restored file.", form: Form::Text }];

pub(super) const REDACT_PARAMS: &[Param] =
    &[Param { name: "entityRef", about: "The entity whose bodies are removed everywhere.", form: Form::Text }];

/// `POST /sinks/{sink}/pause`.
pub(super) async fn pause(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    Segments(sink): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    context.command(&access, &sink, SinkCommand::Pause).await
}

/// `POST /sinks/{sink}/resume`.
pub(super) async fn resume(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    Segments(sink): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    context.command(&access, &sink, SinkCommand::Resume).await
}

/// `POST /sinks/{sink}/skip`.
pub(super) async fn skip(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    Segments(sink): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), SKIP_PARAMS)?;
    let text = query.text("offset").ok_or_else(|| missing("offset", "name the offset on which the sink is blocked"))?;
    let offset = parse_offset("offset", text)?;
    context.command(&access, &sink, SinkCommand::Skip(offset)).await
}

/// `POST /sinks/{sink}/rewind`.
pub(super) async fn rewind(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    Segments(sink): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), REWIND_PARAMS)?;
    let text = query.text("to").ok_or_else(|| missing("to", "write snapshot, earliest, latest or an offset"))?;
    let command = match text {
        "snapshot" => SinkCommand::RewindToSnapshot,
        "earliest" => SinkCommand::RewindTo(context.asked_state().await?.oldest),
        "latest" => SinkCommand::RewindTo(context.asked_state().await?.head),
        text => SinkCommand::RewindTo(parse_offset("to", text).map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            let detail = format!("to is \"{shown}\"; write snapshot, earliest, latest or an offset");
            Problem::of_field(Kind::InvalidParameter, "to", detail)
        })?),
    };
    context.command(&access, &sink, command).await
}

/// `GET /sinks/{sink}/preview`.
pub(super) async fn preview(
    State(context): State<Arc<Context>>,
    Operator(_): Operator,
    Segments(sink): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let limit = Query::parse(raw.as_deref(), PREVIEW_PARAMS)?.size("limit")?;
    let sink = SinkName::parse(&sink).map_err(|_| no_consumer("sink", &sink))?;
    let messages =
        context.parts.control.preview(&sink, limit).await.map_err(|error| control_problem("sink", &error))?;
    Ok(json_reply(&messages))
}

/// `POST /sources/{source}/reconcile`.
pub(super) async fn reconcile(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    Segments(source): Segments<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let confirm = Query::parse(raw.as_deref(), RECONCILE_PARAMS)?.flag("confirm")?;
    let source = SourceName::parse(&source).map_err(|_| no_consumer("source", &source))?;
    info!(%source, confirm, by = %access.name, "an operator asks for a reconcile");
    let begun = context.parts.control.reconcile(&source, confirm).await;
    begun.map(|begun| json_reply(&begun)).map_err(|error| control_problem("source", &error))
}

/// `POST /log/new-id`.
pub(super) async fn new_log_id(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), NEW_ID_PARAMS)?;
    let reason: String = query.text("reason").unwrap_or("by hand").chars().take(200).collect();
    info!(by = %access.name, reason, "an operator gives the log a new id");
    let log_id = context.store().new_log_id(&reason).await.map_err(|error| context.problem(error))?;
    context.parts.control.commanded();
    Ok(json_reply(&json!({ "logId": log_id })))
}

/// `POST /redact`.
pub(super) async fn redact(
    State(context): State<Arc<Context>>,
    Operator(access): Operator,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(raw.as_deref(), REDACT_PARAMS)?;
    let text = query.text("entityRef").ok_or_else(|| missing("entityRef", "name the entity, kind:namespace/name"))?;
    let entity_ref = parse_ref("entityRef", text)?;
    info!(%entity_ref, by = %access.name, "an operator redacts an entity");
    let events = context.store().redact(&entity_ref).await.map_err(|error| context.problem(error))?;
    Ok(json_reply(&json!({ "entityRef": entity_ref, "redactedEvents": events })))
}

impl Context {
    /// Stores a command, which reaches the sink's owner on whichever replica that is.
    async fn command(&self, access: &Access, sink: &str, command: SinkCommand) -> Result<Response, Problem> {
        let store = self.store();
        let row = store.checkpoint(ConsumerKind::Sink, sink).await.map_err(|error| self.problem(error))?;
        if row.is_none() && self.parts.board.get(ConsumerKind::Sink, sink).is_none() {
            return Err(no_consumer("sink", sink));
        }
        let row = store.command(sink, &command).await.map_err(|error| self.problem(error))?;
        info!(sink, ?command, by = %access.name, "an operator commands a sink");
        self.parts.control.commanded();
        Ok(json_reply(&row))
    }
}

fn missing(name: &str, what: &str) -> Problem {
    Problem::of_field(Kind::InvalidParameter, name, format!("{name} is missing: {what}"))
}

fn no_consumer(field: &str, name: &str) -> Problem {
    let shown: String = name.chars().take(63).collect();
    let detail = format!("there is no {field} \"{shown}\"; catalog-bridge status lists them");
    Problem::of_field(Kind::NotFound, field, detail)
}

fn control_problem(field: &str, error: &ControlError) -> Problem {
    match error {
        ControlError::NotFound(detail) => Problem::of_field(Kind::NotFound, field, detail),
        ControlError::Refused(detail) => Problem::of_field(Kind::CommandRefused, field, detail),
        ControlError::Unavailable(detail) => Problem::of_field(Kind::StoreUnavailable, field, detail).retry_after(2),
    }
}
