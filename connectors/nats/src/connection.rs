//! A connection of our own: it dies with its owner, and tells what it suffers at once.
//!
//! Keeps P9 as far as a client can: the client library runs on a runtime of its own, which is shut down on drop. What the
//! library still holds in its queues is therefore never written, where it would otherwise reconnect and send it. What the
//! kernel holds already may land; the expected sequence in every message makes that harmless.

use std::future::Future;

use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::{Event, ServerError, ServerInfo};
use catalog_bridge_api::{ConnectorError, SinkName};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::config::Config;
use crate::errors;
use crate::session::{ACK_TIMEOUT, WINDOW_EVENTS};

/// What became of a connection.
#[derive(Debug, Clone)]
enum Trouble {
    Lost(String),
    NoRight(String),
}

/// A connection, closed when it is dropped.
pub(crate) struct Connection {
    pub(crate) context: Context,
    pub(crate) endpoint: String,
    troubles: watch::Receiver<Option<Trouble>>,
    _runtime: OwnRuntime,
}

struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Connection {
    /// Connects once; does not try again.
    pub(crate) async fn open(config: &Config, sink: &SinkName) -> Result<Connection, ConnectorError> {
        let endpoint = config.endpoint();
        let (sender, troubles) = watch::channel(None);
        let options = config.connect_options(sink)?.event_callback(move |event| {
            note(&sender, &event);
            std::future::ready(())
        });
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("nats").enable_all().build();
        let runtime = runtime.map_err(|error| ConnectorError::transient("connect", &endpoint, error))?;
        let (addresses, domain) = (config.addresses(), config.domain.clone());
        let connecting = runtime.spawn(async move {
            let client = options.connect(addresses).await?;
            // Twice the window: with fewer permits than unsettled acknowledgements, publishing would wait for ever.
            let builder = ContextBuilder::new().timeout(ACK_TIMEOUT).max_ack_inflight(2 * WINDOW_EVENTS);
            Ok(match domain {
                Some(domain) => builder.domain(domain).build(client),
                None => builder.build(client),
            })
        });
        let runtime = OwnRuntime(Some(runtime));
        match connecting.await {
            Ok(Ok(context)) => Ok(Connection { context, endpoint, troubles, _runtime: runtime }),
            Ok(Err(error)) => Err(errors::connect_error(&endpoint, &error)),
            Err(error) => Err(ConnectorError::transient("connect", endpoint, error)),
        }
    }

    /// Runs `work` until it is done or the connection suffers, whichever is first. Troubles come first in time as well: a
    /// request that the server refuses by an error of the connection is never answered.
    pub(crate) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectorError>>,
    ) -> Result<T, ConnectorError> {
        tokio::select! {
            biased;
            outcome = work => outcome,
            trouble = self.trouble() => Err(trouble),
        }
    }

    async fn trouble(&self) -> ConnectorError {
        let mut troubles = self.troubles.clone();
        let trouble = troubles.wait_for(Option::is_some).await.ok().and_then(|trouble| trouble.clone());
        match trouble {
            Some(Trouble::NoRight(words)) => ConnectorError::misconfigured(&self.endpoint, words),
            Some(Trouble::Lost(words)) => ConnectorError::transient("stay connected", &self.endpoint, words),
            None => ConnectorError::transient("stay connected", &self.endpoint, "the connection was closed"),
        }
    }

    /// What the server says of itself.
    pub(crate) fn server(&self) -> ServerInfo {
        self.context.client().server_info()
    }
}

/// Keeps the first trouble; a refusal of rights says more than the end of the connection that follows it.
fn note(sender: &watch::Sender<Option<Trouble>>, event: &Event) {
    let trouble = match event {
        Event::ServerError(error) => {
            let words = match error {
                ServerError::Other(words) => words.clone(),
                other => other.to_string(),
            };
            // An ended login (expired, revoked) closes the connection. The next one opens what may have been replaced on disk
            // meanwhile, and tells whether that is good.
            if errors::is_about_permissions(&words) { Trouble::NoRight(words) } else { Trouble::Lost(words) }
        }
        Event::Disconnected => Trouble::Lost("the connection was lost".to_owned()),
        Event::Closed => Trouble::Lost("the connection was closed".to_owned()),
        _ => return,
    };
    sender.send_if_modified(|known| {
        let is_news = known.is_none() || matches!((&*known, &trouble), (Some(Trouble::Lost(_)), Trouble::NoRight(_)));
        if is_news {
            *known = Some(trouble);
        }
        is_news
    });
}
