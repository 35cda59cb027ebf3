use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use catalog_bridge_api::{Event, JsonText, Offset};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::problem::Kind;
use super::query::{Form, Param};
use super::reply::json_reply;
use super::routes::{self, Place, Route};
use super::settings::BasePath;

/// `GET /openapi.json`.
pub(super) async fn serve(State(context): State<Arc<Context>>) -> Response {
    json_reply(&document(&context.settings.base_path))
}

/// The OpenAPI 3.1 document of everything that is served, with the readers' routes below this path.
pub fn document(base_path: &BasePath) -> Value {
    let mut paths = Map::new();
    for route in routes::all() {
        let prefix = if route.place == Place::Base { base_path.as_str() } else { "" };
        // `/status` is on both listeners; the readers' one is told.
        let path = paths.entry(format!("{prefix}{}", route.path)).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.entry(route.method).or_insert_with(|| operation(&route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "catalog-bridge",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A change feed for Backstage's software catalog. Bootstrap: read all pages of /entities. Follow: \
                read /events from its lastEventOffset, and store the lastEventOffset of each reply. On 409 or 410 bootstrap \
                again.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut responses = Map::new();
    responses.insert("200".to_owned(), json!({ "description": route.summary, "content": route.reply.content() }));
    let auth: &[Kind] = if route.scope.is_some() { &[Kind::Unauthenticated, Kind::InsufficientScope] } else { &[] };
    let store: &[Kind] = if route.scope.is_some() { &[Kind::TooBusy, Kind::StoreUnavailable] } else { &[] };
    for kind in route.problems.iter().chain(auth).chain(store) {
        let status = kind.status().to_string();
        let line = format!("`{}`: {}", kind.type_uri(), kind.title());
        let response = responses.entry(status).or_insert_with(|| {
            let schema = json!({ "$ref": "#/components/schemas/Problem" });
            json!({ "description": "", "content": { "application/problem+json": { "schema": schema } } })
        });
        let told = response["description"].as_str().unwrap_or_default();
        response["description"] = if told.is_empty() { line } else { format!("{told}\n\n{line}") }.into();
    }
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "tags": [if route.place == Place::Admin { "operator" } else { "reader" }],
        "parameters": parameters(route),
        "responses": responses,
    });
    if let Some(scope) = route.scope {
        operation["security"] = json!([{ "token": [] }, {}]);
        operation["x-scope"] = scope.as_str().into();
    }
    if route.place == Place::Admin {
        operation["servers"] = json!([{ "url": "http://127.0.0.1:8220", "description": "the operator's listener" }]);
    }
    if route.path.ends_with("/changes") {
        operation["requestBody"] = json!({
            "required": true,
            "description": "At most 10,000 changes and 16 MiB; plain or gzip.",
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Changes" } } },
        });
    }
    operation
}

fn operation_id(route: &Route) -> String {
    let place = if route.place == Place::Admin { "operator_" } else { "" };
    let words = route.path.split(['/', '-', '.']).filter(|word| !word.is_empty() && !word.starts_with('{'));
    let by = if route.path.ends_with("{offset}") { "_by_offset" } else { "" };
    format!("{place}{}_{}{by}", route.method, words.collect::<Vec<_>>().join("_"))
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(route.params.iter().map(query_parameter));
    if route.path.ends_with("/changes") {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": false,
            "description": "A repeated request with the same key and body gets the first answer and appends nothing; kept a \
                day.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 200 },
        }));
    }
    parameters
}

fn query_parameter(param: &Param) -> Value {
    let mut told = json!({
        "name": param.name,
        "in": "query",
        "required": false,
        "description": param.about,
        "schema": param.schema(),
    });
    if matches!(param.form, Form::Texts) {
        told["explode"] = true.into();
    }
    told
}

/// The components: generated from the types where there are types.
fn schemas() -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let event = generator.subschema_for::<Event>();
    let entity = generator.subschema_for::<JsonText>();
    let offset = generator.subschema_for::<Offset>();
    let mut schemas = generator.take_definitions(true);
    let log_id =
        json!({ "type": "string", "format": "uuid", "description": "offsets mean something only together with it" });
    let position = |about: &str| json!({ "allOf": [offset], "description": about });
    schemas.insert(
        "Head".to_owned(),
        object(&[
            ("lastEventOffset", position("continue from here"), true),
            ("headOffset", position("the log's last event"), true),
            ("oldestOffset", position("the smallest offset to resume after"), true),
            ("logId", log_id.clone(), true),
        ]),
    );
    schemas.insert(
        "Events".to_owned(),
        object(&[
            ("lastEventOffset", position("continue from here; also past what the filter left out: store it"), true),
            ("headOffset", position("the log's last event"), true),
            ("oldestOffset", position("the smallest offset to resume after"), true),
            ("logId", log_id.clone(), true),
            ("events", json!({ "type": "array", "items": event }), true),
        ]),
    );
    let cursor = json!({ "type": "string", "description": "absent on the last page" });
    schemas.insert(
        "Entities".to_owned(),
        object(&[
            ("lastEventOffset", position("the offset at which all pages of the walk are the state"), true),
            ("logId", log_id.clone(), true),
            ("pageInfo", object(&[("nextCursor", cursor, false)]), true),
            ("items", json!({ "type": "array", "items": entity }), true),
        ]),
    );
    schemas.insert(
        "History".to_owned(),
        object(&[
            ("logId", log_id, true),
            ("nextBefore", position("`before` of the next page; absent on the last"), false),
            ("events", json!({ "type": "array", "items": event }), true),
        ]),
    );
    let upsert = object(&[("upsert", json!({ "type": "object", "description": "the entity as it is now" }), true)]);
    let remove = object(&[("remove", json!({ "type": "string", "description": "kind:namespace/name" }), true)]);
    let changes = json!({ "type": "array", "maxItems": 10_000, "items": { "oneOf": [upsert, remove] } });
    schemas.insert("Changes".to_owned(), object(&[("changes", changes, true)]));
    schemas.insert(
        "Appended".to_owned(),
        object(&[
            ("appended", json!({ "type": "integer", "description": "events written" }), true),
            ("unchanged", json!({ "type": "integer", "description": "changes that changed nothing" }), true),
            ("lastEventOffset", position("everything in the request is at or below it"), true),
        ]),
    );
    schemas.insert("Problem".to_owned(), problem_schema());
    Value::Object(schemas)
}

fn problem_schema() -> Value {
    let types: Vec<String> = Kind::ALL.iter().map(|kind| kind.type_uri()).collect();
    object(&[
        ("type", json!({ "type": "string", "enum": types }), true),
        ("title", json!({ "type": "string" }), true),
        ("status", json!({ "type": "integer" }), true),
        ("detail", json!({ "type": "string", "description": "what failed, on what, and what to do" }), true),
        ("field", json!({ "type": "string", "description": "the parameter, header or place in the body" }), false),
        ("index", json!({ "type": "integer", "description": "which of the changes" }), false),
        ("bootstrap", json!({ "type": "string", "description": "where to begin again" }), false),
        ("headOffset", json!({ "type": "integer" }), false),
        ("oldestOffset", json!({ "type": "integer" }), false),
        ("logId", json!({ "type": "string", "format": "uuid" }), false),
    ])
}

fn object(members: &[(&str, Value, bool)]) -> Value {
    let required: Vec<&str> = members.iter().filter(|member| member.2).map(|member| member.0).collect();
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema, _)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}
