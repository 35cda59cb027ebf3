//! Webhooks by `reqwest` to a receiver in this process that only counts: 16 requests under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, Message};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::Destination;

const REQUESTS: usize = 16;
/// Signed beforehand: what signing costs counts for the bridge.
const SIGNATURE: &str = "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=";

pub(crate) struct Receiver {
    url: String,
    received: Arc<AtomicUsize>,
}

impl Receiver {
    /// Starts it on a free port.
    pub(crate) async fn start() -> Result<Self> {
        let received = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&received);
        let count = move |_: Bytes| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { StatusCode::NO_CONTENT }
        };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}/events", listener.local_addr()?);
        let router = Router::new().route("/events", post(count));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Receiver { url, received })
    }
}

#[async_trait]
impl Destination for Receiver {
    fn name(&self) -> &'static str {
        "webhook"
    }

    async fn fresh(&mut self) -> Result<Value> {
        self.received.store(0, Ordering::Relaxed);
        Ok(json!({
            "url": self.url,
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "allow_http": true,
            "allow_addresses": ["127.0.0.1"],
            "max_in_flight": REQUESTS,
        }))
    }

    async fn publish(&self, messages: Vec<Message>) -> Result<Duration> {
        let client = reqwest::Client::new();
        let begin = Instant::now();
        let requests = stream::iter(messages).map(|message| {
            let mut request = client.post(&self.url).header("content-type", message.content_type);
            for (name, value) in &message.attributes {
                request = request.header(format!("ce-{name}"), value);
            }
            let request = request
                .header(BRIDGE_LOG_ID, message.id.log_id.to_string())
                .header(BRIDGE_GENERATION, message.id.generation)
                .header(BRIDGE_OFFSET, message.offset().get())
                .header("webhook-id", message.id.to_string())
                .header("webhook-timestamp", "1764471600")
                .header("webhook-signature", SIGNATURE)
                .body(message.body);
            async move { anyhow::Ok(request.send().await?.error_for_status()?) }
        });
        requests.buffer_unordered(REQUESTS).try_for_each(async |_| Ok(())).await?;
        Ok(begin.elapsed())
    }

    async fn count(&self) -> Result<usize> {
        Ok(self.received.load(Ordering::Relaxed))
    }
}
