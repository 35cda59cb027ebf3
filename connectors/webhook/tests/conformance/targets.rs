//! Where it connects to, and where it does not.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use catalog_bridge_api::{ConnectorError, Ordering};
use catalog_bridge_services::{Direction, FaultProxy, make_certificates};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;

use crate::setup::{
    assert_no_secret, build, is_misconfigured, is_transient, messages, receiver, section, section_with, session, stored,
};

/// TLS before a receiver.
pub(crate) struct TlsFront {
    pub(crate) address: String,
    serving: tokio::task::JoinHandle<()>,
}

impl TlsFront {
    pub(crate) async fn start(certificates: &Path, target: &str) -> Result<Self> {
        let chain = CertificateDer::pem_file_iter(certificates.join("server.crt"))?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(certificates.join("server.key"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let target = target.to_owned();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    let mut server = TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Ok(TlsFront { address, serving })
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_by_its_file_and_no_other_is() -> Result<()> {
    let directory = tempfile::tempdir()?;
    make_certificates(directory.path()).await?;
    let strangers = tempfile::tempdir()?;
    make_certificates(strangers.path()).await?;
    let receiver = receiver()?;
    let front = TlsFront::start(directory.path(), &receiver.address()).await?;
    let port = front.address.rsplit_once(':').context("a port")?.1;
    let url = format!("https://me:hunter2@localhost:{port}/hooks/T0KEN");
    let by = |tls| section_with("unused", json!({ "url": url, "tls": tls, "allow_addresses": ["127.0.0.1", "::1"] }));

    let trusted = build(by(json!({ "ca_file": directory.path().join("ca.pem") })), Ordering::Entity)?;
    let report = trusted.check().await?;
    assert!(report.facts.iter().any(|fact| fact.contains("no request was sent")), "{report:?}");
    assert!(report.warnings.is_empty(), "{report:?}");
    assert_eq!(receiver.asked_count(), 0, "check sends nothing");
    session(&*trusted, messages(1..=3)).await?.result?;
    assert_eq!(stored(&receiver).len(), 3);
    assert!(receiver.stored()[0].headers["authorization"].starts_with("Basic "), "user and password of the URL");

    for tls in [json!({}), json!({ "ca_file": strangers.path().join("ca.pem") })] {
        let connector = build(by(tls), Ordering::Entity)?;
        for error in
            [connector.check().await.expect_err("not trusted"), session(&*connector, messages(4..=4)).await?.error()]
        {
            assert!(is_misconfigured(&error) && error.to_string().contains("certificate"), "{error}");
            assert_no_secret(&error);
        }
    }
    let missing = build(by(json!({ "ca_file": "/nowhere/ca.pem" })), Ordering::Entity)?;
    let error = missing.check().await.expect_err("no such file");
    assert!(is_misconfigured(&error) && error.to_string().contains("/nowhere/ca.pem"), "{error}");
    assert_eq!(stored(&receiver).len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_port_without_tls_is_for_the_operator() -> Result<()> {
    let receiver = receiver()?;
    let change = json!({ "url": format!("https://{}/hooks/T0KEN", receiver.address()) });
    let connector = build(section_with("unused", change), Ordering::Entity)?;

    let error = connector.check().await.expect_err("no TLS there");

    assert!(is_misconfigured(&error) && error.to_string().contains("speaks TLS"), "{error}");
    assert_no_secret(&error);
    Ok(())
}

/// A literal is refused when the config is read, a name when it is resolved: nothing is dialled.
#[tokio::test]
async fn addresses_of_the_inside_are_refused() -> Result<()> {
    let receiver = receiver()?;
    let port = receiver.address().rsplit_once(':').context("a port")?.1.to_owned();
    let by = |host: &str, allowed: &[&str]| {
        let url = format!("http://{host}:{port}/hooks/T0KEN");
        section_with("unused", json!({ "url": url, "allow_addresses": allowed }))
    };
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"] {
        let Err(error) = build(by(host, &[]), Ordering::Entity) else { panic!("{host} is taken") };
        assert!(error.to_string().contains("allow_addresses") && !error.to_string().contains("T0KEN"), "{error}");
    }

    let by_name = build(by("localhost", &[]), Ordering::Entity)?;
    for error in [by_name.check().await.expect_err("refused"), session(&*by_name, messages(1..=1)).await?.error()] {
        assert!(is_misconfigured(&error) && error.to_string().contains("loopback"), "{error}");
        assert_no_secret(&error);
    }
    assert_eq!(receiver.asked_count(), 0);

    let allowed = build(by("localhost", &["127.0.0.0/8", "::1"]), Ordering::Entity)?;
    allowed.check().await?;
    session(&*allowed, messages(1..=1)).await?.result?;
    assert_eq!(stored(&receiver), [1]);
    Ok(())
}

/// The environment's proxy would dial in our place, past every check of addresses. Another process, as the environment is one
/// for all tests.
#[tokio::test]
async fn no_proxy_of_the_environment_is_used() -> Result<()> {
    let receiver = receiver()?;
    let proxy = FaultProxy::start(&receiver.address())?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["--exact", "delivery::a_request_is_signed_and_tells_log_generation_and_offset"]);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, format!("http://{}", proxy.address()));
    }

    let output = tokio::task::spawn_blocking(move || command.output()).await??;

    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(proxy.accepted_count(), 0);
    Ok(())
}

#[tokio::test]
async fn an_absent_endpoint_or_name_is_waited_for() -> Result<()> {
    let receiver = receiver()?;
    let proxy = FaultProxy::start(&receiver.address())?;
    proxy.cut()?;
    let connector = build(section(&proxy.address()), Ordering::Entity)?;
    for error in [connector.check().await.expect_err("away"), session(&*connector, messages(1..=1)).await?.error()] {
        assert!(is_transient(&error) && error.to_string().contains(&proxy.address()), "{error}");
        assert_no_secret(&error);
    }
    let nameless = section_with("unused", json!({ "url": "http://no-such-host.invalid/T0KEN" }));
    let error = build(nameless, Ordering::Entity)?.check().await.expect_err("no such name");
    assert!(is_transient(&error), "{error}");

    proxy.mend()?;

    connector.check().await?;
    session(&*connector, messages(1..=1)).await?.result?;
    assert_eq!(stored(&receiver), [1]);
    Ok(())
}

/// What is stored and whose answer is lost is not acknowledged, and the next session sends it again alike.
#[tokio::test]
async fn a_lost_answer_is_no_acknowledgement() -> Result<()> {
    let receiver = receiver()?;
    let proxy = FaultProxy::start(&receiver.address())?;
    let connector = build(section_with(&proxy.address(), json!({ "timeout_seconds": 2 })), Ordering::Entity)?;
    proxy.drop_data(Direction::ToClient)?;
    let outcome = session(&*connector, messages(1..=1)).await?;
    assert!(outcome.acknowledged.is_empty());
    assert!(matches!(outcome.error(), ConnectorError::Transient { .. }));
    proxy.heal()?;

    session(&*connector, messages(1..=1)).await?.result?;

    let stored = receiver.stored();
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[0].headers["webhook-id"], stored[1].headers["webhook-id"]);
    assert_eq!(stored[0].body, stored[1].body);
    Ok(())
}
