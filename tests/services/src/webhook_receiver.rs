//! An HTTP server that stores what is posted to it, once the signature is right (Standard Webhooks), and answers as told.
//!
//! It runs on a thread and a runtime of its own, so it serves any test. The signature is computed here from RFC 2104, so that
//! it shares no code with what it judges.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener as StdListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, sync::oneshot};

use crate::port::Port;

/// How far a signature's time may be from ours.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct WebhookRequest {
    /// Path and query.
    pub target: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Bytes,
    /// How many of its signatures are right.
    pub valid_signatures: usize,
    /// When it had arrived whole.
    pub at: Instant,
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub struct WebhookReply {
    /// The answer's status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: String,
    /// Whether the request is stored, before the delay.
    pub is_stored: bool,
    /// How long the answer waits.
    pub delay: Duration,
}

impl WebhookReply {
    /// Stored, and said so.
    pub fn stored() -> Self {
        Self { is_stored: true, ..Self::status(204) }
    }

    /// Not stored, answered with this status.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new(), is_stored: false, delay: Duration::ZERO }
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

type Rule = Box<dyn FnMut(&WebhookRequest) -> WebhookReply + Send>;

struct Shared {
    secrets: Mutex<Vec<String>>,
    rule: Mutex<Rule>,
    stored: Mutex<Vec<WebhookRequest>>,
    asked: AtomicUsize,
    open: AtomicUsize,
    open_max: AtomicUsize,
}

/// A receiver; it ends when it is dropped.
pub struct WebhookReceiver {
    port: Port,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

impl WebhookReceiver {
    /// Starts one that stores everything signed with one of these secrets (`whsec_…`).
    pub fn start(secrets: &[&str]) -> Result<Self> {
        let port = Port::reserve()?;
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, port.number())).context("binding a receiver's port")?;
        listener.set_nonblocking(true).context("making a receiver's port non-blocking")?;
        let shared = Arc::new(Shared {
            secrets: Mutex::default(),
            rule: Mutex::new(Box::new(|_| WebhookReply::stored())),
            stored: Mutex::default(),
            asked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("building a receiver's runtime")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new().fallback(receive).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&shared));
        thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    _ = stopped => {}
                }
            });
        });
        let receiver = Self { port, shared, _stop: stop };
        receiver.accept_secrets(secrets);
        Ok(receiver)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// From now on these secrets count; what none of them signed is answered with 401.
    pub fn accept_secrets(&self, secrets: &[&str]) {
        *lock(&self.shared.secrets) = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    }

    /// From now on this decides about requests whose signature is right.
    pub fn answer(&self, rule: impl FnMut(&WebhookRequest) -> WebhookReply + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
    }

    /// What it stored, in the order of arrival.
    pub fn stored(&self) -> Vec<WebhookRequest> {
        lock(&self.shared.stored).clone()
    }

    /// How many requests came, whatever became of them.
    pub fn asked_count(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// How many requests were open at once, at most.
    pub fn open_max(&self) -> usize {
        self.shared.open_max.load(Ordering::SeqCst)
    }
}

/// Counts a request as open while it lives, also when its connection breaks.
struct Open(Arc<Shared>);

impl Open {
    fn count(shared: Arc<Shared>) -> Self {
        let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
        shared.open_max.fetch_max(open, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let _open = Open::count(Arc::clone(&shared));
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut request = WebhookRequest {
        target: uri.path_and_query().map_or_else(|| uri.to_string(), ToString::to_string),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body,
        valid_signatures: 0,
        at: Instant::now(),
    };
    let secrets = lock(&shared.secrets).clone();
    request.valid_signatures = match valid_signatures(&request, &secrets, SystemTime::now()) {
        Ok(0) => return (StatusCode::UNAUTHORIZED, "no signature is right").into_response(),
        Ok(count) => count,
        Err(error) => return (StatusCode::UNAUTHORIZED, format!("{error:#}")).into_response(),
    };
    if method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let reply = {
        let reply = (lock(&shared.rule))(&request);
        if reply.is_stored {
            lock(&shared.stored).push(request);
        }
        reply
    };
    tokio::time::sleep(reply.delay).await;
    let mut response = reply.body.into_response();
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn valid_signatures(request: &WebhookRequest, secrets: &[String], now: SystemTime) -> Result<usize> {
    let header = |name: &str| request.headers.get(name).with_context(|| format!("{name} is missing"));
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let seconds = Duration::from_secs(timestamp.parse().context("webhook-timestamp is no number")?);
    let at = SystemTime::UNIX_EPOCH + seconds;
    let distance = now.duration_since(at).unwrap_or_else(|error| error.duration());
    if distance > TOLERANCE {
        return Err(anyhow!("webhook-timestamp is {distance:?} away"));
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", request.body.as_ref()].concat();
    let expected = secrets.iter().map(|secret| signature(secret, &signed)).collect::<Result<Vec<_>>>()?;
    Ok(header("webhook-signature")?.split(' ').filter(|found| expected.iter().any(|right| right == found)).count())
}

fn signature(secret: &str, signed: &[u8]) -> Result<String> {
    let key = secret.strip_prefix("whsec_").context("a secret begins with whsec_")?;
    let mut block = STANDARD.decode(key)?;
    block.resize(64, 0);
    let padded = |pad: u8| block.iter().map(move |byte| byte ^ pad).collect::<Vec<u8>>();
    let inner = Sha256::digest([padded(0x36).as_slice(), signed].concat());
    let outer = Sha256::digest([padded(0x5c).as_slice(), &inner].concat());
    Ok(format!("v1,{}", STANDARD.encode(outer)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published example of Standard Webhooks.
    #[test]
    fn the_published_example_is_right_and_another_body_is_not() {
        let mut request = WebhookRequest {
            target: "/".to_owned(),
            headers: [
                ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                ("webhook-timestamp", "1614265330"),
                ("webhook-signature", "v1,other v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            body: Bytes::from_static(br#"{"test": 2432232314}"#),
            valid_signatures: 0,
            at: Instant::now(),
        };
        let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()];
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_614_265_400);

        assert_eq!(valid_signatures(&request, &secrets, then).expect("judged"), 1);
        assert!(valid_signatures(&request, &secrets, then + TOLERANCE).is_err(), "too late");
        request.body = Bytes::from_static(br#"{"test": 2432232315}"#);
        assert_eq!(valid_signatures(&request, &secrets, then).expect("judged"), 0);
    }
}
