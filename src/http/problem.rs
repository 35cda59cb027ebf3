use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// The kinds of problem; each has a `type` that stays the same for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A query parameter, header or path segment cannot be used.
    InvalidParameter,
    /// There is no such query parameter here.
    UnknownParameter,
    /// The request's body is not what it must be.
    InvalidBody,
    /// No token, or an unknown one.
    Unauthenticated,
    /// The token does not allow this.
    InsufficientScope,
    /// A web page of another site sent it.
    CrossOrigin,
    /// There is no such thing here.
    NotFound,
    /// There is no such ingest source.
    SourceNotFound,
    /// The path takes other methods.
    MethodNotAllowed,
    /// The body did not come in time.
    RequestTimeout,
    /// The log has another id: its offsets mean something else now.
    LogChanged,
    /// The offset is above the log's head.
    OffsetAhead,
    /// The entity belongs to another source.
    RefOwned,
    /// The command makes no sense in this state.
    CommandRefused,
    /// Events after this offset are no longer all kept: bootstrap again.
    OffsetExpired,
    /// This event is no longer kept.
    EventExpired,
    /// The body is larger than it may be.
    ContentTooLarge,
    /// The body's type or encoding is not known here.
    UnsupportedMediaType,
    /// One of the changes cannot be appended; none was.
    InvalidChange,
    /// The idempotency key was used with another body.
    IdempotencyMismatch,
    /// This token has too many long polls.
    TooManyRequests,
    /// A bug of ours.
    Internal,
    /// The event log cannot be reached.
    StoreUnavailable,
    /// This process bears no more at the moment.
    TooBusy,
}

impl Kind {
    /// All kinds, for documents.
    pub const ALL: [Kind; 24] = [
        Kind::InvalidParameter,
        Kind::UnknownParameter,
        Kind::InvalidBody,
        Kind::Unauthenticated,
        Kind::InsufficientScope,
        Kind::CrossOrigin,
        Kind::NotFound,
        Kind::SourceNotFound,
        Kind::MethodNotAllowed,
        Kind::RequestTimeout,
        Kind::LogChanged,
        Kind::OffsetAhead,
        Kind::RefOwned,
        Kind::CommandRefused,
        Kind::OffsetExpired,
        Kind::EventExpired,
        Kind::ContentTooLarge,
        Kind::UnsupportedMediaType,
        Kind::InvalidChange,
        Kind::IdempotencyMismatch,
        Kind::TooManyRequests,
        Kind::Internal,
        Kind::StoreUnavailable,
        Kind::TooBusy,
    ];

    /// The problem's `type`.
    pub fn type_uri(self) -> String {
        format!("urn:catalog-bridge:problem:{}", self.parts().1)
    }

    /// The problem's `status`.
    pub fn status(self) -> u16 {
        self.parts().0
    }

    /// The problem's `title`.
    pub fn title(self) -> &'static str {
        self.parts().2
    }

    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Kind::InvalidParameter => (400, "invalid-parameter", "a parameter cannot be used"),
            Kind::UnknownParameter => (400, "unknown-parameter", "there is no such query parameter"),
            Kind::InvalidBody => (400, "invalid-body", "the body is not what it must be"),
            Kind::Unauthenticated => (401, "unauthenticated", "a token is needed"),
            Kind::InsufficientScope => (403, "insufficient-scope", "the token does not allow this"),
            Kind::CrossOrigin => (403, "cross-origin", "requests from other sites are refused"),
            Kind::NotFound => (404, "not-found", "not found"),
            Kind::SourceNotFound => (404, "source-not-found", "there is no such ingest source"),
            Kind::MethodNotAllowed => (405, "method-not-allowed", "the path takes other methods"),
            Kind::RequestTimeout => (408, "request-timeout", "the body did not come in time"),
            Kind::LogChanged => (409, "log-changed", "the log has another id: bootstrap again"),
            Kind::OffsetAhead => (409, "offset-ahead", "the offset is above the log's head: bootstrap again"),
            Kind::RefOwned => (409, "ref-owned", "the entity belongs to another source"),
            Kind::CommandRefused => (409, "command-refused", "the command makes no sense now"),
            Kind::OffsetExpired => (410, "offset-expired", "the offset is no longer kept: bootstrap again"),
            Kind::EventExpired => (410, "event-expired", "the event is no longer kept"),
            Kind::ContentTooLarge => (413, "content-too-large", "the body is too large"),
            Kind::UnsupportedMediaType => (415, "unsupported-media-type", "the body's type is not known here"),
            Kind::InvalidChange => (422, "invalid-change", "a change cannot be appended; none was"),
            Kind::IdempotencyMismatch => (422, "idempotency-mismatch", "the idempotency key had another body"),
            Kind::TooManyRequests => (429, "too-many-requests", "too many requests of this token"),
            Kind::Internal => (500, "internal", "an error of the daemon"),
            Kind::StoreUnavailable => (503, "store-unavailable", "the event log cannot be reached"),
            Kind::TooBusy => (503, "too-busy", "the daemon bears no more at the moment"),
        }
    }
}

/// An answer by RFC 9457, `application/problem+json`.
#[derive(Debug, Clone)]
pub struct Problem(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    kind: Kind,
    detail: String,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem with a sentence on what failed, on what, and what to do.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem(Box::new(Parts { kind, detail: detail.into(), members: Map::new(), headers: Vec::new() }))
    }

    /// A problem of one field: a query parameter, a header, or a place in the body.
    pub(super) fn of_field(kind: Kind, field: &str, detail: impl Into<String>) -> Problem {
        Problem::new(kind, detail).with("field", field)
    }

    /// With a member of its own.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.0.members.insert(name.to_owned(), value.into());
        self
    }

    /// With `Retry-After`.
    pub(super) fn retry_after(self, seconds: u32) -> Problem {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.0.headers.push((name, value));
        self
    }

    #[cfg(test)]
    pub(super) fn kind(&self) -> Kind {
        self.0.kind
    }

    #[cfg(test)]
    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    fn to_json(&self) -> Value {
        let Parts { kind, detail, members, .. } = &*self.0;
        let mut body = json!({
            "type": kind.type_uri(),
            "title": kind.title(),
            "status": kind.status(),
            "detail": detail,
        });
        if let Some(body) = body.as_object_mut() {
            body.extend(members.clone());
        }
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json().to_string()));
        *response.status_mut() =
            StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.0.headers {
            headers.insert(name, value);
        }
        response
    }
}
