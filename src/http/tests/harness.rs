use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use catalog_bridge_api::{SinkName, SourceName};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fake_store::FakeStore;
use crate::http::{Control, ControlError, Http, Listeners, Metrics, Parts, Settings};
use crate::store::{Store, Tail};
use crate::telemetry::StatusBoard;
use crate::telemetry::metrics::Registry;

/// A server over a store, and a client of it.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) base: String,
    pub(super) root: String,
    pub(super) admin: String,
    pub(super) board: StatusBoard,
    pub(super) control: Arc<FakeControl>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

/// An answer: status, headers' problem kind, body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) body: Value,
}

impl Answer {
    /// The last part of a problem's type.
    pub(super) fn problem(&self) -> &str {
        self.body["type"].as_str().and_then(|uri| uri.rsplit(':').next()).unwrap_or("no problem")
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    #[track_caller]
    pub(super) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }
}

pub(super) async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

#[derive(Default)]
pub(super) struct FakeControl {
    pub(super) calls: Mutex<Vec<String>>,
}

impl FakeControl {
    fn note(&self, call: String) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Control for FakeControl {
    async fn preview(&self, sink: &SinkName, limit: usize) -> Result<Value, ControlError> {
        self.note(format!("preview {sink} {limit}"));
        if sink.as_str() == "audit" {
            Ok(json!({ "messages": [] }))
        } else {
            Err(ControlError::NotFound("none".into()))
        }
    }

    async fn reconcile(&self, source: &SourceName, confirm: bool) -> Result<Value, ControlError> {
        self.note(format!("reconcile {source} {confirm}"));
        if confirm { Err(ControlError::Refused("it holds no removals".into())) } else { Ok(json!({ "begun": true })) }
    }

    fn commanded(&self) {
        self.note("commanded".to_owned());
    }
}

pub(super) fn settings() -> Settings {
    let mut settings = Settings::new("127.0.0.1:0", Some("127.0.0.1:0".to_owned()));
    settings.ingest_sources = ["push", "other"].iter().map(|name| SourceName::parse(name).expect("a name")).collect();
    settings
}

impl Server {
    pub(super) async fn start() -> (Server, Arc<FakeStore>) {
        Server::with(settings()).await
    }

    pub(super) async fn with(settings: Settings) -> (Server, Arc<FakeStore>) {
        let store = Arc::new(FakeStore::new());
        (Server::over(store.clone(), settings).await, store)
    }

    pub(super) async fn over(store: Arc<dyn Store>, settings: Settings) -> Server {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let (board, control) = (StatusBoard::default(), Arc::new(FakeControl::default()));
        let parts = Parts {
            tail: Tail::new(store, 64 * 1024 * 1024),
            board: board.clone(),
            registry: Arc::new(registry.into_registered()),
            metrics,
            control: control.clone(),
        };
        let base_path = settings.base_path.as_str().to_owned();
        let listeners = Listeners::bind(&settings).await.expect("free ports");
        let root = format!("http://{}", listeners.address().expect("bound"));
        let admin = listeners.admin_address().map(|address| format!("http://{address}")).unwrap_or_default();
        let http = Http::new(listeners, settings, parts);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(http.run(shutdown.clone()));
        let client = Client::builder().no_proxy().build().expect("a client");
        Server { client, base: format!("{root}{base_path}"), root, admin, board, control, shutdown, running }
    }

    /// `GET` below the base path.
    pub(super) async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(format!("{}{path}", self.base))).await
    }

    pub(super) async fn get_as(&self, token: &str, path: &str) -> Answer {
        answer(self.client.get(format!("{}{path}", self.base)).bearer_auth(token)).await
    }

    /// A request to the operator's listener.
    pub(super) async fn command(&self, path: &str) -> Answer {
        answer(self.client.post(format!("{}{path}", self.admin))).await
    }

    pub(super) fn ingest(&self, changes: &Value) -> RequestBuilder {
        self.client.post(format!("{}/sources/push/changes", self.base)).json(&json!({ "changes": changes }))
    }

    /// The entity is now so.
    pub(super) async fn put(&self, name: &str, owner: &str) {
        answer(self.ingest(&json!([{ "upsert": component(name, owner) }]))).await.ok();
    }

    pub(super) async fn remove(&self, name: &str) {
        answer(self.ingest(&json!([{ "remove": format!("component:default/{name}") }]))).await.ok();
    }

    pub(super) fn shut_down(&self) {
        self.shutdown.cancel();
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.expect("no panic");
    }
}

pub(super) fn component(name: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "backstage.io/v1alpha1",
        "kind": "Component",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "type": "service", "owner": owner },
    })
}
