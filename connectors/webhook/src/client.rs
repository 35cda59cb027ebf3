//! The HTTP client of one session, and everything that is read from files for it.

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{BoxError, ConnectorError};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
use tower::util::MapResultLayer;

use crate::address::{Guard, GuardedResolver, Lookup, system_lookup};
use crate::config::{Config, endpoint};
use crate::failure::{Failure, Unused, failure, unused};
use crate::signature::Signer;

/// An idle connection is closed by us first: many servers do after 5 s, and a request that meets their end on its way is lost.
const IDLE_MAX: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An endpoint, with its secrets opened.
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) endpoint: String,
    pub(crate) signer: Signer,
    config: Arc<Config>,
    guard: Guard,
    lookup: Lookup,
    authorities: Option<Vec<Certificate>>,
}

impl Target {
    /// Opens secrets and files, off the threads that others wait for.
    pub(crate) async fn open(config: &Arc<Config>) -> Result<Target, ConnectorError> {
        let config = Arc::clone(config);
        let opening = tokio::task::spawn_blocking(move || Target::read(config));
        opening.await.map_err(|error| ConnectorError::transient("open", "webhook", error))?
    }

    fn read(config: Arc<Config>) -> Result<Target, ConnectorError> {
        let url = config.parse_url().map_err(|reason| ConnectorError::misconfigured("url", reason))?;
        let endpoint = endpoint(&url);
        let wrong = |reason: String| ConnectorError::misconfigured(&*endpoint, reason);
        let guard = config.guard().map_err(|error| wrong(error.to_string()))?;
        guard.check_literal(&url).map_err(|error| wrong(error.to_string()))?;
        let signer = Signer::read(config.secret.as_slice()).map_err(|reason| wrong(format!("secret: {reason}")))?;
        let file = config.tls.as_ref().and_then(|tls| tls.ca_file.as_ref());
        let authorities = file.map(|file| {
            let pem = std::fs::read(file).map_err(|error| error.to_string());
            let found = pem.and_then(|pem| Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string()));
            match found {
                Ok(found) if found.is_empty() => Err(wrong(format!("{}: holds no certificate", file.display()))),
                found => found.map_err(|error| wrong(format!("{}: {error}", file.display()))),
            }
        });
        let authorities = authorities.transpose()?;
        Ok(Target { url, endpoint, signer, config, guard, lookup: system_lookup(), authorities })
    }

    /// A client whose connections, once made, are used only if `admit` says so.
    pub(crate) fn client(
        &self,
        admit: impl Fn() -> Result<(), Unused> + Clone + Send + Sync + 'static,
    ) -> Result<Client, ConnectorError> {
        let mut builder = Client::builder()
            .user_agent(concat!("catalog-bridge/", env!("CARGO_PKG_VERSION")))
            // A redirect could lead to the inside, and a proxy would dial in our place.
            .redirect(Policy::none())
            .no_proxy()
            .retry(reqwest::retry::never())
            .timeout(self.config.timeout())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(self.config.max_in_flight)
            .https_only(!self.config.allow_http)
            .dns_resolver(GuardedResolver { guard: self.guard.clone(), lookup: Arc::clone(&self.lookup) })
            .connector_layer(MapResultLayer::new(move |made: Result<_, BoxError>| {
                let connection = made?;
                admit()?;
                Ok::<_, BoxError>(connection)
            }));
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.iter().cloned());
        }
        builder.build().map_err(|error| ConnectorError::misconfigured(&*self.endpoint, format!("tls: {error:?}")))
    }

    /// Resolves the name, connects and shakes hands; sends no request.
    pub(crate) async fn dial(&self) -> Result<(), ConnectorError> {
        let client = self.client(|| Err(Unused::OnlyDialled))?;
        match client.get(self.url.clone()).send().await {
            // Not reached: there is no connection to send on.
            Ok(_) => Ok(()),
            Err(error) if unused(&error) == Some(Unused::OnlyDialled) => Ok(()),
            Err(error) => match failure("connect", &self.endpoint, error) {
                Failure::Failed(error) => Err(error),
                Failure::LeaseLost => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Mutex;

    use futures::FutureExt;
    use serde_json::json;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A name that leads to a good address when it is looked at, and to another one when it counts.
    #[tokio::test]
    async fn a_name_that_leads_elsewhere_the_second_time_is_refused_there() {
        // The whole of 127.0.0.0/8 arrives here.
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let section = json!({
            "url": format!("http://hooks.example:{port}/"),
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "allow_http": true,
            "allow_addresses": ["127.0.0.1"],
        });
        let config = Arc::new(catalog_bridge_api::parse_config::<Config>(section).expect("a config"));
        let mut target = Target::open(&config).await.expect("opened");
        let answers: Mutex<Vec<IpAddr>> =
            Mutex::new(["127.0.0.2", "127.0.0.1"].map(|text| text.parse().expect("an address")).into());
        target.lookup = Arc::new(move |_| {
            let answer = answers.lock().expect("unpoisoned").pop().expect("asked twice");
            async move { Ok(vec![answer]) }.boxed()
        });

        target.dial().await.expect("the first answer is allowed");
        listener.accept().await.expect("it connected");
        let error = target.dial().await.expect_err("the second is not");

        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("hooks.example leads to 127.0.0.2, a loopback address"), "{error}");
        let next = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        let (_, from) = listener.accept().await.expect("accepted");
        assert_eq!(from, next.local_addr().expect("connected"), "nothing was dialled in between");
    }
}
