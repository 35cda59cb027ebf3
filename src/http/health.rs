use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use catalog_bridge_api::Offset;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};

use super::auth::{Operator, Overseer};
use super::context::{Context, STORE_PATIENCE};
use super::problem::{Kind, Problem};
use super::query::Query;
use super::reply::json_reply;
use crate::store::{Checkpoint, ConsumerKind};
use crate::telemetry::{ConsumerState, ConsumerStatus};

/// `GET /healthz`: this process answers. Tells nothing of databases or brokers: a restart would not mend them.
pub(super) async fn healthz() -> Response {
    json_reply(&json!({ "status": "alive" }))
}

/// `GET /readyz`: the event log can be reached, so readers can be served.
pub(super) async fn readyz(State(context): State<Arc<Context>>) -> Result<Response, Problem> {
    if context.closing.is_cancelled() {
        return Err(Problem::new(Kind::TooBusy, "the daemon stops").retry_after(5));
    }
    match context.health().await {
        Ok(_) => Ok(json_reply(&json!({ "status": "ready" }))),
        Err(_) => Err(Problem::new(Kind::StoreUnavailable, "the event log cannot be reached").retry_after(1)),
    }
}

/// `GET /metrics`, in the OpenMetrics text format.
pub(super) async fn metrics(State(context): State<Arc<Context>>) -> Result<Response, Problem> {
    encode_metrics(&context.parts.registry)
}

/// The same while there is no log yet.
pub(super) async fn early_metrics(State(registry): State<Arc<Registry>>) -> Result<Response, Problem> {
    encode_metrics(&registry)
}

fn encode_metrics(registry: &Registry) -> Result<Response, Problem> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)
        .map_err(|_| Problem::new(Kind::Internal, "the metrics could not be written; this is a bug"))?;
    let mut response = Response::new(Body::from(text));
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    Ok(response)
}

/// `GET /status` on the readers' listener.
pub(super) async fn status(
    State(context): State<Arc<Context>>,
    _: Overseer,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    Ok(json_reply(&context.status().await))
}

/// `GET /status` on the operator's listener.
pub(super) async fn operator_status(
    State(context): State<Arc<Context>>,
    Operator(_): Operator,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    Ok(json_reply(&context.status().await))
}

impl Context {
    /// What everything does, also when the store is away: then it holds what this process knows.
    async fn status(&self) -> Value {
        let health = self.health().await;
        let rows = match &health {
            Ok(_) => tokio::time::timeout(STORE_PATIENCE, self.store().checkpoints()).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        let rows = rows.unwrap_or_default();
        let mut log = json!(self.known_state());
        if let Some(log) = log.as_object_mut() {
            log.insert("state".to_owned(), if health.is_ok() { "ok" } else { "away" }.into());
            if let Err(error) = health {
                log.insert("error".to_owned(), error.into());
            }
        }
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "log": log,
            "sources": self.consumers(ConsumerKind::Source, &rows),
            "sinks": self.consumers(ConsumerKind::Sink, &rows),
        })
    }

    fn consumers(&self, kind: ConsumerKind, rows: &[Checkpoint]) -> Map<String, Value> {
        let ours: BTreeMap<String, ConsumerStatus> = self.parts.board.all(kind).into_iter().collect();
        let rows: BTreeMap<&str, &Checkpoint> =
            rows.iter().filter(|row| row.kind == kind).map(|row| (row.name.as_str(), row)).collect();
        let names: BTreeSet<&str> = ours.keys().map(String::as_str).chain(rows.keys().copied()).collect();
        let head = self.known_state().head;
        let consumer = |name: &str| consumer(ours.get(name), rows.get(name).copied(), head);
        names.into_iter().map(|name| (name.to_owned(), consumer(name))).collect()
    }
}

/// One source or sink: what its worker here says, or, when that stands by, what its owner's worker published. That is some
/// seconds old, longer when the owner died: where the sink stands is then read from the row itself.
fn consumer(ours: Option<&ConsumerStatus>, row: Option<&Checkpoint>, head: Offset) -> Value {
    let stands_by = ours.is_none_or(|ours| matches!(ours.state, ConsumerState::Standby { .. }));
    let published =
        row.filter(|_| stands_by).and_then(|row| serde_json::from_str::<Value>(row.status.as_ref()?.as_str()).ok());
    let mut shown = match (published, ours) {
        (Some(Value::Object(mut published)), _) => {
            if let Some(row) = row.filter(|row| row.kind == ConsumerKind::Sink) {
                published.insert("checkpoint".to_owned(), json!(row.offset));
                published.insert("lagEvents".to_owned(), head.get().saturating_sub(row.offset.get()).into());
            }
            published
        }
        (_, Some(ours)) => json!(ours).as_object().cloned().unwrap_or_default(),
        (_, None) => Map::new(),
    };
    if ours.is_none() {
        shown.insert("configured".to_owned(), false.into());
    }
    if let Some(row) = row {
        let mut add = |name: &str, value: Value| {
            if !value.is_null() {
                shown.entry(name).or_insert(value);
            }
        };
        add("owner", json!(row.owner));
        add("leaseExpiresAt", json!(row.lease_expires_at));
        if row.kind == ConsumerKind::Sink {
            add("checkpoint", json!(row.offset));
            add("generation", json!(row.generation));
            add("paused", json!(row.paused));
            add("expired", json!(row.expired));
            add("walk", json!(row.walk));
        }
    }
    Value::Object(shown)
}
