use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Uri;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde_json::{Value, json};

use super::auth::refuse_other_names;
use super::context::Context;
use super::problem::{Kind, Problem};
use super::query::Param;
use super::settings::{Auth, Scope};
use super::{admin, entities, events, health, ingest, openapi};

/// A route, as it is served and as the OpenAPI document tells it: one list for both, so that neither lacks one.
pub(super) struct Route {
    pub(super) place: Place,
    pub(super) path: &'static str,
    pub(super) method: &'static str,
    pub(super) handler: MethodRouter<Arc<Context>>,
    pub(super) summary: &'static str,
    /// What a token needs; `None`: nothing.
    pub(super) scope: Option<Scope>,
    pub(super) params: &'static [Param],
    pub(super) reply: Reply,
    pub(super) problems: &'static [Kind],
}

/// Where a route lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the base path.
    Base,
    /// At the root of the readers' listener.
    Root,
    /// On the operator's listener.
    Admin,
}

/// What a route answers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// JSON of this schema in the document's components.
    Schema(&'static str),
    /// An object that is told by its text only.
    Object(&'static str),
    /// Text of this media type.
    Text(&'static str),
}

const WALK_PROBLEMS: &[Kind] =
    &[Kind::InvalidParameter, Kind::UnknownParameter, Kind::LogChanged, Kind::OffsetAhead, Kind::OffsetExpired];
const EVENTS_PROBLEMS: &[Kind] = &[
    Kind::InvalidParameter,
    Kind::UnknownParameter,
    Kind::LogChanged,
    Kind::OffsetAhead,
    Kind::OffsetExpired,
    Kind::TooManyRequests,
];
const LOOK_UP_PROBLEMS: &[Kind] = &[Kind::InvalidParameter, Kind::UnknownParameter, Kind::NotFound];
const COMMAND_PROBLEMS: &[Kind] =
    &[Kind::InvalidParameter, Kind::UnknownParameter, Kind::CrossOrigin, Kind::NotFound, Kind::CommandRefused];

/// All routes.
pub(super) fn all() -> Vec<Route> {
    let mut routes = reader_routes();
    routes.extend(open_routes());
    routes.extend(operator_routes());
    routes
}

fn reader_routes() -> Vec<Route> {
    let read = |path, handler, summary, params, reply, problems| Route {
        place: Place::Base,
        path,
        method: "get",
        handler,
        summary,
        scope: Some(Scope::Read),
        params,
        reply,
        problems,
    };
    vec![
        read(
            "/events",
            get(events::events),
            "Events after an offset, ascending; waits for one when there is none",
            events::EVENTS_PARAMS,
            Reply::Schema("Events"),
            EVENTS_PROBLEMS,
        ),
        read(
            "/events/head",
            get(events::head),
            "Where the log stands",
            &[],
            Reply::Schema("Head"),
            &[Kind::UnknownParameter],
        ),
        read(
            "/events/{offset}",
            get(events::event),
            "One event",
            events::EVENT_PARAMS,
            Reply::Schema("Event"),
            &[Kind::InvalidParameter, Kind::UnknownParameter, Kind::NotFound, Kind::LogChanged, Kind::EventExpired],
        ),
        read(
            "/entities",
            get(entities::entities),
            "All entities as they are at one offset, page by page: read all pages, then follow /events from lastEventOffset",
            entities::ENTITIES_PARAMS,
            Reply::Schema("Entities"),
            WALK_PROBLEMS,
        ),
        read(
            "/entities/by-name/{kind}/{namespace}/{name}",
            get(entities::by_name),
            "One entity as it is now",
            &[],
            Reply::Schema("Entity"),
            LOOK_UP_PROBLEMS,
        ),
        read(
            "/entities/by-name/{kind}/{namespace}/{name}/history",
            get(entities::history),
            "An entity's events that are still kept, newest first",
            entities::HISTORY_PARAMS,
            Reply::Schema("History"),
            LOOK_UP_PROBLEMS,
        ),
        Route {
            place: Place::Base,
            path: "/sources/{source}/changes",
            method: "post",
            handler: post(ingest::changes),
            summary: "Appends changes of an ingest source, all or none, in the order given",
            scope: Some(Scope::Ingest),
            params: &[],
            reply: Reply::Schema("Appended"),
            problems: &[
                Kind::InvalidParameter,
                Kind::UnknownParameter,
                Kind::InvalidBody,
                Kind::CrossOrigin,
                Kind::SourceNotFound,
                Kind::RequestTimeout,
                Kind::RefOwned,
                Kind::ContentTooLarge,
                Kind::UnsupportedMediaType,
                Kind::InvalidChange,
                Kind::IdempotencyMismatch,
            ],
        },
    ]
}

fn open_routes() -> Vec<Route> {
    let open = |path, handler, summary, scope, reply, problems| Route {
        place: Place::Root,
        path,
        method: "get",
        handler,
        summary,
        scope,
        params: &[],
        reply,
        problems,
    };
    vec![
        open("/healthz", get(health::healthz), "This process answers", None, Reply::Object("status"), &[]),
        open(
            "/readyz",
            get(health::readyz),
            "The event log can be reached",
            None,
            Reply::Object("status"),
            &[Kind::StoreUnavailable],
        ),
        open(
            "/status",
            get(health::status),
            "What the log, the sources and the sinks do, and what leads out of it",
            Some(Scope::Read),
            Reply::Object("log, sources and sinks"),
            &[Kind::UnknownParameter],
        ),
        open(
            "/metrics",
            get(health::metrics),
            "Metrics for Prometheus",
            None,
            Reply::Text("application/openmetrics-text"),
            &[],
        ),
        open(
            "/openapi.json",
            get(openapi::serve),
            "This document",
            None,
            Reply::Object("an OpenAPI 3.1 document"),
            &[],
        ),
    ]
}

fn operator_routes() -> Vec<Route> {
    let route = |method, path, handler, summary, params, reply| Route {
        place: Place::Admin,
        path,
        method,
        handler,
        summary,
        scope: Some(Scope::Admin),
        params,
        reply: Reply::Object(reply),
        problems: COMMAND_PROBLEMS,
    };
    let row = "the sink's row";
    vec![
        route(
            "get",
            "/status",
            get(health::operator_status),
            "As on the readers' listener",
            &[],
            "log, sources and sinks",
        ),
        route("post", "/sinks/{sink}/pause", post(admin::pause), "Stops delivery", &[], row),
        route(
            "post",
            "/sinks/{sink}/resume",
            post(admin::resume),
            "Delivers again, also out of diverged and disabled",
            &[],
            row,
        ),
        route(
            "post",
            "/sinks/{sink}/skip",
            post(admin::skip),
            "Passes over the event on which the sink is blocked",
            admin::SKIP_PARAMS,
            row,
        ),
        route(
            "post",
            "/sinks/{sink}/rewind",
            post(admin::rewind),
            "Delivers again, under a new generation",
            admin::REWIND_PARAMS,
            row,
        ),
        route(
            "get",
            "/sinks/{sink}/preview",
            get(admin::preview),
            "The next messages that the sink would send; sends nothing",
            admin::PREVIEW_PARAMS,
            "messages",
        ),
        route(
            "post",
            "/sources/{source}/reconcile",
            post(admin::reconcile),
            "Compares the catalog with the log",
            admin::RECONCILE_PARAMS,
            "what was begun",
        ),
        route(
            "post",
            "/log/new-id",
            post(admin::new_log_id),
            "Gives the log a new id; every reader begins again",
            admin::NEW_ID_PARAMS,
            "logId",
        ),
        route(
            "post",
            "/redact",
            post(admin::redact),
            "Removes an entity's bodies everywhere; offsets stay",
            admin::REDACT_PARAMS,
            "entityRef and redactedEvents",
        ),
    ]
}

/// The readers' listener.
pub(super) fn reader_router(context: &Arc<Context>, is_loopback: bool) -> Router {
    router(context, is_loopback, |place| place != Place::Admin)
}

/// The operator's listener.
pub(super) fn operator_router(context: &Arc<Context>, is_loopback: bool) -> Router {
    router(context, is_loopback, |place| place == Place::Admin)
}

fn router(context: &Arc<Context>, is_loopback: bool, is_here: impl Fn(Place) -> bool) -> Router {
    let base = context.settings.base_path.as_str();
    let mut router = Router::new();
    for route in all().into_iter().filter(|route| is_here(route.place)) {
        let prefix = if route.place == Place::Base { base } else { "" };
        router = router.route(&format!("{prefix}{}", route.path), route.handler);
    }
    router = router.method_not_allowed_fallback(method_not_allowed).fallback(not_found);
    if is_loopback && matches!(context.settings.auth, Auth::Open) {
        router = router.layer(from_fn_with_state(context.clone(), check_name));
    }
    router.layer(from_fn_with_state(context.clone(), measure)).with_state(context.clone())
}

async fn check_name(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    match refuse_other_names(request.headers(), context.settings.public_url.as_deref()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn measure(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    let route = route.as_deref().unwrap_or("none");
    context.parts.metrics.answered(route, response.status().as_u16(), started.elapsed());
    response
}

async fn not_found(State(context): State<Arc<Context>>, uri: Uri) -> Problem {
    let shown: String = uri.path().chars().take(200).collect();
    let base = context.settings.base_path.as_str();
    let detail = format!("there is nothing at {shown}; the routes are told by /openapi.json, most lie below {base}/");
    Problem::of_field(Kind::NotFound, "path", detail)
}

async fn method_not_allowed(request: Request) -> Problem {
    let detail = format!("{} does not take {}; see /openapi.json", request.uri().path(), request.method());
    Problem::of_field(Kind::MethodNotAllowed, "method", detail)
}

impl Reply {
    pub(super) fn content(self) -> Value {
        match self {
            Reply::Schema(name) => {
                json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{name}") } } })
            }
            Reply::Object(about) => {
                json!({ "application/json": { "schema": { "type": "object", "description": about } } })
            }
            Reply::Text(media_type) => json!({ media_type: { "schema": { "type": "string" } } }),
        }
    }
}
