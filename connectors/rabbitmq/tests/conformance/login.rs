//! Who one is: PLAIN over TLS, client certificates, EXTERNAL.

use anyhow::Result;
use catalog_bridge_api::{Connector, ConnectorError};
use catalog_bridge_services::{RabbitMq, RabbitMqOptions, RabbitMqVersion};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::broker::{build, fresh, start, take_all};
use crate::driver::{Sink, open_error};

/// TLS, a certificate asked for and not demanded.
async fn secured(version: RabbitMqVersion) -> Result<&'static RabbitMq> {
    static NEW: OnceCell<RabbitMq> = OnceCell::const_new();
    static OLD: OnceCell<RabbitMq> = OnceCell::const_new();
    let cell = match version {
        RabbitMqVersion::V4 => &NEW,
        RabbitMqVersion::V3 => &OLD,
    };
    cell.get_or_try_init(|| start(RabbitMqOptions { version, secured: true, ..Default::default() })).await
}

fn section(rabbit: &RabbitMq, login: &str, name: &str, tls: &[&str]) -> Value {
    let security = rabbit.security();
    let mut files = serde_json::Map::new();
    for (key, file) in [("ca_file", "ca.pem"), ("certificate_file", "client.crt"), ("key_file", "client.key")] {
        if tls.contains(&key) {
            files.insert(key.to_owned(), json!(security.file(file)));
        }
    }
    let url = format!("amqps://{login}{}/%2f", security.address());
    json!({ "url": url, "exchange": name, "queue": name, "tls": files })
}

const CERTIFICATE: &[&str] = &["ca_file", "certificate_file", "key_file"];

async fn delivers(rabbit: &RabbitMq, connector: &dyn Connector, name: &str) -> Result<()> {
    let sink = Sink::new(300, 20);
    sink.deliver(connector).await?;
    sink.check(&take_all(&rabbit.address(1), name).await?, 1)
}

#[tokio::test]
async fn a_password_goes_over_tls() -> Result<()> {
    for version in [RabbitMqVersion::V4, RabbitMqVersion::V3] {
        let (rabbit, name) = (secured(version).await?, fresh("tls"));
        let connector = build(section(rabbit, "guest:guest@", &name, &["ca_file"]), true)?;
        delivers(rabbit, &*connector, &name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_certificate_is_the_user_with_external() -> Result<()> {
    for version in [RabbitMqVersion::V4, RabbitMqVersion::V3] {
        let (rabbit, name) = (secured(version).await?, fresh("external"));
        let mut section = section(rabbit, "", &name, CERTIFICATE);
        section["auth"] = json!("external");
        delivers(rabbit, &*build(section, true)?, &name).await?;
    }
    Ok(())
}

/// A broker that demands certificates from everybody, and then asks for a password.
#[tokio::test]
async fn a_demanded_certificate_is_shown_and_its_absence_told() -> Result<()> {
    let settings = "ssl_options.fail_if_no_peer_cert = true".to_owned();
    let rabbit = start(RabbitMqOptions { settings, secured: true, ..Default::default() }).await?;
    let name = fresh("mutual");

    delivers(&rabbit, &*build(section(&rabbit, "guest:guest@", &name, CERTIFICATE), true)?, &name).await?;

    let without = build(section(&rabbit, "guest:guest@", &name, &["ca_file"]), true)?;
    for error in [without.check().await.expect_err("refused"), open_error(&*without).await] {
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_login_is_for_the_operator_and_holds_no_secret() -> Result<()> {
    for version in [RabbitMqVersion::V4, RabbitMqVersion::V3] {
        let rabbit = secured(version).await?;
        let mut untrusted = section(rabbit, "guest:guest@", "any", &[]);
        // An authority, and not this broker's.
        untrusted["tls"] = json!({ "ca_file": rabbit.security().file("client.crt") });
        rabbit.control(1, &["add_user", "idle", "s3cret-idle"]).await?;
        for (section, named) in [
            (section(rabbit, "guest:s3cret-wrong@", "any", &["ca_file"]), "ACCESS_REFUSED"),
            (section(rabbit, "nobody:s3cret-wrong@", "any", &["ca_file"]), "ACCESS_REFUSED"),
            (section(rabbit, "idle:s3cret-idle@", "any", &["ca_file"]), "access to vhost"),
            (untrusted, "certificate"),
        ] {
            let connector = build(section, false)?;
            for error in [connector.check().await.expect_err(named), open_error(&*connector).await] {
                assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{version:?} {named}: {error}");
                assert!(error.to_string().contains(named), "{version:?}: {error}");
                assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
            }
        }
        rabbit.control(1, &["delete_user", "idle"]).await?;
    }
    Ok(())
}

/// A broker that does not offer EXTERNAL, and a certificate of nobody that it knows.
#[tokio::test]
async fn external_that_cannot_work_is_told() -> Result<()> {
    let rabbit = start(RabbitMqOptions { secured: true, ..Default::default() }).await?;
    let mut section = section(&rabbit, "", "any", CERTIFICATE);
    section["auth"] = json!("external");
    let connector = build(section, false)?;
    rabbit.control(1, &["delete_user", "client"]).await?;

    let error = open_error(&*connector).await;

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");
    // As without the plugin: the broker then hangs up without a word.
    rabbit.control(1, &["eval", "application:set_env(rabbit, auth_mechanisms, ['PLAIN'])."]).await?;

    let error = open_error(&*connector).await;

    assert!(matches!(error, ConnectorError::Transient { .. }), "{error}");
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("rabbitmq_auth_mechanism_ssl"));
    Ok(())
}
