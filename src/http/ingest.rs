use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use catalog_bridge_api::{Cause, EntityRef, SourceName};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::auth::Writer;
use super::context::Context;
use super::problem::{Kind, Problem};
use super::query::{Query, Segments};
use super::reply::json_reply;
use crate::source::entity::parse_entity;
use crate::store::{APPEND_BYTES_MAX, APPEND_CHANGES_MAX, Append, Change, Idempotency, OnOwned, Removal, Upsert};

/// Largest body, before and after decompression.
pub(super) const BODY_BYTES_MAX: usize = APPEND_BYTES_MAX;
/// How much of a body that is too large is read before the answer, and how long a pause in it may be.
const DISCARDED_BYTES_MAX: usize = 256 * 1024 * 1024;
const DISCARD_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Longest idempotency key.
const KEY_BYTES_MAX: usize = 200;

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    appended: u64,
    unchanged: u64,
    last_event_offset: u64,
}

/// `POST /sources/{source}/changes`.
pub(super) async fn changes(
    State(context): State<Arc<Context>>,
    Writer(access): Writer,
    Segments(source): Segments<String>,
    RawQuery(raw): RawQuery,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref(), &[])?;
    let source = context.ingest_source(&source)?;
    let key = idempotency_key(request.headers())?;
    let encoding = body_encoding(request.headers())?;
    let declared = declared_length(request.headers());
    let room = context.reserve_ingest(room_for(declared, encoding)).await?;

    let body = read_body(&context, request, declared).await?;
    // Reading and appending go on when the client has gone, so the room goes along: it is free when the data is.
    let read = move || -> Result<_, Problem> {
        let text = decode(body, encoding)?;
        let body_hash = format!("{:x}", Sha256::digest(&text));
        Ok((parse_changes(&text)?, body_hash, room))
    };
    let (changes, body_hash, room) = tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| Problem::new(Kind::Internal, "the body could not be read; this is a bug"))??;

    let append = Append {
        source,
        changes,
        position: None,
        idempotency: key.map(|key| Idempotency { key: format!("{}:{key}", access.name), body_hash }),
        rejected: Vec::new(),
        on_owned: OnOwned::RefuseAll,
    };
    let store = Arc::clone(context.store());
    let appending = tokio::spawn(async move {
        let appended = store.append(append).await;
        drop(room);
        appended
    });
    let appended = appending
        .await
        .map_err(|_| Problem::new(Kind::Internal, "the changes could not be appended; this is a bug"))?
        .map_err(|error| context.problem(error))?;
    let mut response = json_reply(&Answer {
        appended: appended.appended,
        unchanged: appended.unchanged,
        last_event_offset: appended.last_event_offset.get(),
    });
    if appended.repeated {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

impl Context {
    fn ingest_source(&self, text: &str) -> Result<SourceName, Problem> {
        let known = &self.settings.ingest_sources;
        if let Some(source) = known.iter().find(|source| source.as_str() == text) {
            return Ok(source.clone());
        }
        let shown: String = text.chars().take(63).collect();
        let detail = if known.is_empty() {
            format!("no ingest source is configured; add \"{shown}: {{ ingest: {{}} }}\" under sources")
        } else {
            let names = known.iter().map(SourceName::as_str).collect::<Vec<_>>().join(", ");
            format!("\"{shown}\" is no ingest source of this daemon; configured are {names}")
        };
        Err(Problem::of_field(Kind::SourceNotFound, "source", detail))
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = format!("Idempotency-Key must be 1 to {KEY_BYTES_MAX} visible ASCII characters");
        return Err(Problem::of_field(Kind::InvalidParameter, "Idempotency-Key", detail));
    }
    Ok(Some(key.to_owned()))
}

/// How the body was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
}

fn body_encoding(headers: &HeaderMap) -> Result<Packing, Problem> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?").trim().to_lowercase());
    let media_type = text(header::CONTENT_TYPE).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
        let detail = "send the changes as JSON, with the header Content-Type: application/json";
        return Err(Problem::of_field(Kind::UnsupportedMediaType, "Content-Type", detail));
    }
    match text(header::CONTENT_ENCODING).as_deref() {
        None | Some("" | "identity") => Ok(Packing::Plain),
        Some("gzip" | "x-gzip") => Ok(Packing::Gzip),
        Some(_) => {
            let detail = "send the body plain or with Content-Encoding: gzip";
            Err(Problem::of_field(Kind::UnsupportedMediaType, "Content-Encoding", detail))
        }
    }
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How many bytes a request holds at most: the body, and the entities that are copied out of it.
fn room_for(declared: Option<usize>, packing: Packing) -> usize {
    match (declared, packing) {
        (Some(length), Packing::Plain) => 2 * length.min(BODY_BYTES_MAX),
        _ => 2 * BODY_BYTES_MAX,
    }
}

fn too_large() -> Problem {
    let detail = format!("the body has more than {BODY_BYTES_MAX} bytes (after decompression); send several requests");
    Problem::of_field(Kind::ContentTooLarge, "body", detail)
}

async fn read_body(context: &Context, request: Request, declared: Option<usize>) -> Result<Vec<u8>, Problem> {
    let asks_first = request.headers().contains_key(header::EXPECT);
    let mut stream = request.into_body().into_data_stream();
    if declared.is_some_and(|length| length > BODY_BYTES_MAX) {
        if !asks_first {
            discard(&mut stream).await;
        }
        return Err(too_large());
    }
    let timeout = context.settings.limits.body_timeout;
    let reading = async {
        let mut read = Vec::with_capacity(declared.unwrap_or_default());
        while let Some(chunk) = stream.next().await {
            let chunk: Bytes = chunk.map_err(|_| {
                Problem::of_field(Kind::InvalidBody, "body", "the body broke off; send the request again")
            })?;
            if read.len() + chunk.len() > BODY_BYTES_MAX {
                discard(&mut stream).await;
                return Err(too_large());
            }
            read.extend_from_slice(&chunk);
        }
        Ok(read)
    };
    tokio::time::timeout(timeout, reading).await.unwrap_or_else(|_| {
        let detail = format!("the body did not come within {} s; send it again", timeout.as_secs());
        Err(Problem::of_field(Kind::RequestTimeout, "body", detail))
    })
}

/// Reads on for a while without keeping anything: a client that still writes when its connection is closed sees the
/// closing and not our answer.
async fn discard(stream: &mut BodyDataStream) {
    let mut left = DISCARDED_BYTES_MAX;
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(DISCARD_PAUSE_MAX, stream.next()).await {
        let Some(rest) = left.checked_sub(chunk.len()) else { return };
        left = rest;
    }
}

fn decode(body: Vec<u8>, packing: Packing) -> Result<Vec<u8>, Problem> {
    if packing == Packing::Plain {
        return Ok(body);
    }
    let mut text = Vec::new();
    let mut unpacked = MultiGzDecoder::new(body.as_slice()).take(BODY_BYTES_MAX as u64 + 1);
    unpacked.read_to_end(&mut text).map_err(|error| {
        let detail = format!("the body is no whole gzip ({error}); send it again");
        Problem::of_field(Kind::InvalidBody, "body", detail)
    })?;
    if text.len() > BODY_BYTES_MAX { Err(too_large()) } else { Ok(text) }
}

/// Reads the changes. Nesting is skipped over without recursion here, and measured before an entity is parsed.
fn parse_changes(body: &[u8]) -> Result<Vec<Change>, Problem> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let detail = format!("the body is no UTF-8 at byte {}", error.valid_up_to());
        Problem::of_field(Kind::InvalidBody, "body", detail)
    })?;
    let parsed: ChangesBody<'_> = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        if message.starts_with(TOO_MANY) {
            let detail = format!("more than {APPEND_CHANGES_MAX} changes; send several requests");
            return Problem::of_field(Kind::ContentTooLarge, "changes", detail);
        }
        let field = if error.is_data() { "changes" } else { "body" };
        let detail = format!(
            "the body is not {{\"changes\":[{{\"upsert\":{{…}}}},{{\"remove\":\"kind:namespace/name\"}}]}}: {message}"
        );
        Problem::of_field(Kind::InvalidBody, field, detail)
    })?;
    parsed.changes.iter().enumerate().map(|(index, change)| parse_change(index, change.get())).collect()
}

fn parse_change(index: usize, text: &str) -> Result<Change, Problem> {
    let fail = |field: &str, detail: String| {
        let field = format!("changes[{index}]{field}");
        Problem::of_field(Kind::InvalidChange, &field, format!("{field}: {detail}")).with("index", index as u64)
    };
    let change: ChangeBody<'_> = serde_json::from_str(text).map_err(|error| {
        fail("", format!("write {{\"upsert\": {{…entity…}}}} or {{\"remove\": \"kind:namespace/name\"}}: {error}"))
    })?;
    match change {
        ChangeBody { upsert: Some(upsert), remove: None } => {
            let parsed = parse_entity(upsert.get()).map_err(|error| fail(".upsert", error.to_string()))?;
            Ok(Change::Upsert(Upsert {
                entity_ref: parsed.entity_ref,
                uid: parsed.uid,
                entity: parsed.entity,
                source_version: None,
                source_position: None,
                occurred_at: None,
                cause: Cause::Ingest,
            }))
        }
        ChangeBody { upsert: None, remove: Some(remove) } => {
            let entity_ref = EntityRef::parse(&remove).map_err(|error| fail(".remove", error.to_string()))?;
            Ok(Change::Remove(Removal { entity_ref, occurred_at: None, cause: Cause::Ingest }))
        }
        ChangeBody { upsert: Some(_), remove: Some(_) } => {
            Err(fail("", "has both upsert and remove; make it two changes".to_owned()))
        }
        ChangeBody { upsert: None, remove: None } => Err(fail("", "has neither upsert nor remove".to_owned())),
    }
}

/// Marks the error of a list that is too long; it never reaches a client.
const TOO_MANY: &str = "too many changes";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeBody<'text> {
    #[serde(borrow, default)]
    upsert: Option<&'text RawValue>,
    #[serde(borrow, default)]
    remove: Option<Cow<'text, str>>,
}

/// The changes as texts, at most [`APPEND_CHANGES_MAX`]: counted while it is read, so that a body of a million empty
/// objects costs no memory.
struct ChangesBody<'text> {
    changes: Vec<&'text RawValue>,
}

impl<'de> Deserialize<'de> for ChangesBody<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ChangesVisitor)
    }
}

struct ChangesVisitor;

impl<'de> Visitor<'de> for ChangesVisitor {
    type Value = ChangesBody<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with changes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut changes = None;
        while let Some(key) = entries.next_key::<Cow<'_, str>>()? {
            if key != "changes" {
                entries.next_value::<IgnoredAny>()?;
                return Err(A::Error::unknown_field(&key.chars().take(40).collect::<String>(), &["changes"]));
            }
            if changes.is_some() {
                return Err(A::Error::duplicate_field("changes"));
            }
            changes = Some(entries.next_value::<ChangeTexts<'de>>()?.0);
        }
        changes.map(|changes| ChangesBody { changes }).ok_or_else(|| A::Error::missing_field("changes"))
    }
}

struct ChangeTexts<'text>(Vec<&'text RawValue>);

impl<'de> Deserialize<'de> for ChangeTexts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ChangeTextsVisitor)
    }
}

struct ChangeTextsVisitor;

impl<'de> Visitor<'de> for ChangeTextsVisitor {
    type Value = ChangeTexts<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of changes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element::<&'de RawValue>()? {
            if texts.len() == APPEND_CHANGES_MAX {
                return Err(A::Error::custom(TOO_MANY));
            }
            texts.push(text);
        }
        Ok(ChangeTexts(texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8]) -> (Kind, String) {
        let problem = parse_changes(body).expect_err("must be refused");
        (problem.kind(), problem.detail().to_owned())
    }

    #[test]
    fn changes_are_read_in_order_and_texts_are_kept() {
        let body = br#"{"changes":[{"upsert":{ "kind":"Component","metadata":{"name":"A"} }},{"remove":"API:x/Y"}]}"#;

        let changes = parse_changes(body).expect("changes");

        let Change::Upsert(upsert) = &changes[0] else { panic!("an upsert") };
        assert_eq!(upsert.entity.as_str(), r#"{ "kind":"Component","metadata":{"name":"A"} }"#);
        assert_eq!(upsert.entity_ref.as_str(), "component:default/a");
        assert_eq!(changes[1].entity_ref().as_str(), "api:x/y");
    }

    #[test]
    fn a_refused_change_is_named_by_its_index() {
        let check = |change: &str, expected: &str| {
            let good = r#"{"remove":"a:b/c"}"#;
            let (kind, detail) = refused(format!(r#"{{"changes":[{good},{change},{good}]}}"#).as_bytes());
            assert_eq!(kind, Kind::InvalidChange, "{change}");
            assert!(detail.starts_with("changes[1]"), "{detail}");
            assert!(detail.contains(expected), "{detail}");
        };

        check("{}", "neither upsert nor remove");
        check("7", "write {\"upsert\"");
        check(r#"{"upsert":{"kind":"A"}}"#, "metadata is missing");
        check(r#"{"upsert":[]}"#, "not an entity");
        check(r#"{"remove":"no-ref"}"#, "is no entity ref");
        check(r#"{"remove":"a:b/c","upsert":{}}"#, "both upsert and remove");
        check(r#"{"delete":"a:b/c"}"#, "unknown field `delete`");
    }

    #[test]
    fn a_body_of_another_shape_is_refused() {
        let check = |body: &[u8], expected: &str| {
            let (kind, detail) = refused(body);
            assert_eq!(kind, Kind::InvalidBody);
            assert!(detail.contains(expected), "{detail}");
        };

        check(b"", "EOF");
        check(b"[]", "an object with changes");
        check(b"{}", "missing field `changes`");
        check(br#"{"changes":{}}"#, "a list of changes");
        check(br#"{"changes":[],"mode":1}"#, "unknown field `mode`");
        check(br#"{"changes":[]} x"#, "trailing characters");
        check(b"{\"changes\":[\"\xff\"]}", "no UTF-8 at byte 13");
    }

    #[test]
    fn ten_thousand_changes_pass_and_one_more_does_not() {
        let body = |count: usize| format!(r#"{{"changes":[{}]}}"#, vec![r#"{"remove":"a:b/c"}"#; count].join(","));

        assert_eq!(parse_changes(body(APPEND_CHANGES_MAX).as_bytes()).expect("changes").len(), APPEND_CHANGES_MAX);
        assert_eq!(refused(body(APPEND_CHANGES_MAX + 1).as_bytes()).0, Kind::ContentTooLarge);
    }

    /// Nesting bombs, wherever they stand, are an answer and no stack overflow.
    #[test]
    fn nesting_is_refused_without_recursion() {
        let bomb = format!("{}{}", r#"{"a":"#.repeat(200_000), "}".repeat(200_000));
        let closed = format!("{}1{}", r#"{"a":"#.repeat(200_000), "}".repeat(200_000));
        for body in [
            format!(r#"{{"changes":[{{"upsert":{closed}}}]}}"#),
            format!(r#"{{"changes":[{closed}]}}"#),
            format!(r#"{{"changes":{closed}}}"#),
            format!(r#"{{"other":{closed}}}"#),
            closed.clone(),
            bomb.clone(),
            "[".repeat(1_000_000),
        ] {
            let kind = refused(body.as_bytes()).0;
            assert!(matches!(kind, Kind::InvalidBody | Kind::InvalidChange), "{kind:?}");
        }
    }

    #[test]
    fn gzip_is_unpacked_within_the_limit() {
        use flate2::Compression;
        use flate2::write::GzEncoder;
        use std::io::Write;

        let pack = |bytes: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).expect("in memory");
            encoder.finish().expect("in memory")
        };
        let kind = |body: Vec<u8>| decode(body, Packing::Gzip).expect_err("must be refused").kind();

        assert_eq!(decode(pack(b"{}"), Packing::Gzip).expect("whole"), b"{}");
        let whole = pack(&vec![b'x'; 100_000]);
        assert_eq!(kind(whole[..whole.len() - 10].to_vec()), Kind::InvalidBody);
        assert_eq!(kind(b"no gzip".to_vec()), Kind::InvalidBody);
        assert_eq!(kind(pack(&vec![b' '; 100 * 1024 * 1024])), Kind::ContentTooLarge);
    }
}
