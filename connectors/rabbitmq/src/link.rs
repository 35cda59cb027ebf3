//! One connection to a broker, which dies with its owner.
//!
//! Keeps P9: the client library writes what it queued before it closes in good order, so the socket is shut down instead, and
//! after that nothing more is written. The library's own recovery stays off: it would publish on after a gap.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_rs::traits::Reactor;
use catalog_bridge_api::ConnectorError;
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, Tls};
use crate::errors::connector_error;

/// For reaching the broker, TLS and login together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For each answer of the broker that is waited for.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// For an end in good order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection and the hand on its socket.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) endpoint: String,
    socket: Socket,
}

/// Shuts the socket down when dropped, whoever still holds the stream.
#[derive(Clone, Default)]
struct Plug(Arc<Mutex<Option<TcpStream>>>);

struct Socket(Plug);

impl Plug {
    fn hold(&self, socket: TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(socket) = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // An error means that it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// `host:port/vhost`, without credentials.
pub(crate) fn endpoint(uri: &AMQPUri) -> String {
    format!("{}:{}/{}", uri.authority.host, uri.authority.port, uri.vhost.trim_start_matches('/'))
}

impl Link {
    /// Connects and logs in; `name` is shown in the broker's list of connections.
    pub(crate) async fn connect(config: &Config, name: String) -> Result<Self, ConnectorError> {
        let uri = config.uri().map_err(|reason| ConnectorError::misconfigured("url", reason))?;
        let endpoint = endpoint(&uri);
        let tls = match uri.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => {
                let tls = config.tls.clone().unwrap_or_default();
                Some(tls_connector(&tls).map_err(|reason| ConnectorError::misconfigured(&*endpoint, reason))?)
            }
        };
        let runtime =
            lapin::runtime::default_runtime().map_err(|error| connector_error("connect", &endpoint, &error))?;
        let plug = Plug::default();
        // From here on the socket is shut down on every way out.
        let socket = Socket(plug.clone());
        let dial = async move |uri: AMQPUri, runtime: async_rs::TokioRuntime| {
            let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial(&uri, &runtime, tls.as_ref(), &plug)).await;
            Ok(dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten()?)
        };
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = Connection::connector(uri, runtime, dial, properties);
        let connection = in_time("connect", &endpoint, connecting).await?;
        Ok(Link { connection, endpoint, socket })
    }

    /// A channel of its own for something that may fail: an error closes the channel on which it happened.
    pub(crate) async fn channel(&self) -> Result<Channel, ConnectorError> {
        in_time("open a channel", &self.endpoint, self.connection.create_channel()).await
    }

    /// Ends it in good order, if the broker plays along; only for a connection on which nothing is in flight.
    pub(crate) async fn close(self) {
        let close = self.connection.close(200, "OK".into());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
        drop(self.socket);
    }
}

/// Waits for an answer of the broker, not for ever.
pub(crate) async fn in_time<T>(
    action: &'static str,
    endpoint: &str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, ConnectorError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| connector_error(action, endpoint, &error)),
        Err(_) => Err(ConnectorError::transient(action, endpoint, format!("no answer within {ANSWER_TIMEOUT:?}"))),
    }
}

type Stream = AsyncTcpStream<<async_rs::Tokio as Reactor>::TcpStream>;

async fn dial(
    uri: &AMQPUri,
    runtime: &async_rs::TokioRuntime,
    tls: Option<&RustlsConnector>,
    plug: &Plug,
) -> io::Result<Stream> {
    let host = &uri.authority.host;
    let addresses = tokio::net::lookup_host((host.as_str(), uri.authority.port)).await?;
    let mut outcome = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in addresses {
        outcome = runtime.tcp_connect_addr(address).await;
        if outcome.is_ok() {
            break;
        }
    }
    let stream = outcome?;
    plug.hold(stream.get_ref().as_fd().try_clone_to_owned()?.into());
    let stream = AsyncTcpStream::Plain(stream);
    match tls {
        Some(tls) => stream.into_rustls(tls, host).await,
        None => Ok(stream),
    }
}

/// Reads the files afresh, so that they rotate.
fn tls_connector(tls: &Tls) -> Result<RustlsConnector, String> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| format!("tls: {} cannot be read: {error}", path.display()))
    };
    let mut config = match &tls.ca_file {
        Some(_) => RustlsConnectorConfig::default(),
        None => RustlsConnectorConfig::new_with_platform_verifier(),
    };
    if let Some(path) = &tls.ca_file {
        let certificates = certificates(&read(path)?);
        if certificates.is_empty() {
            return Err(format!("tls.ca_file: {} holds no certificate in PEM", path.display()));
        }
        config.add_parsable_certificates(certificates);
    }
    let connector = match (&tls.certificate_file, &tls.key_file) {
        (Some(certificate_file), Some(key_file)) => {
            let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
                .map_err(|_| format!("tls.key_file: {} holds no private key in PEM", key_file.display()))?;
            config.connector_with_single_cert(certificates(&read(certificate_file)?), key)
        }
        _ => config.connector_with_no_client_auth(),
    };
    connector.map_err(|error| format!("tls: {error}"))
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}
