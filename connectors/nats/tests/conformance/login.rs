//! Logins, TLS and permissions: what delivers, and what is the operator's.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{claim, open};
use catalog_bridge_services::{Nats, NatsOperator, NatsOptions, make_certificates};
use serde_json::{Value, json};

use crate::sink::connector_with;

async fn start(settings: String) -> Result<Nats> {
    Nats::start(NatsOptions { settings, ..NatsOptions::default() }).await
}

async fn delivers(nats: &Nats, settings: Value) -> Result<()> {
    // Its own stream each time: nobody but the sink may read it here.
    let stream = crate::server::new_name("login");
    let connector = connector_with(&nats.url(), &stream, settings, true);
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 10, 10).await;
    running.acknowledged_to(10).await?;
    running.finish().await?;
    connector.check().await?;
    Ok(())
}

async fn is_the_operators(nats: &Nats, settings: Value) -> Result<String> {
    let connector = connector_with(&nats.url(), "REFUSED", settings.clone(), true);
    let open = connector.open(claim(0, None)).await.err().context("opened")?;
    let check = connector.check().await.err().context("checked")?;
    for error in [&open, &check] {
        ensure!(matches!(error, ConnectorError::Misconfigured { .. }), "{settings}: {error}");
        let told = format!("{error} {error:?}");
        ensure!(!secrets(&settings).iter().any(|secret| told.contains(secret)), "{error}");
    }
    Ok(open.to_string())
}

/// What no error may quote: the wrong password, and the long words of a credentials file (its JWT and seed).
fn secrets(settings: &Value) -> Vec<String> {
    let file = settings["credentials_file"].as_str().and_then(|path| std::fs::read_to_string(path).ok());
    let words = file.as_deref().unwrap_or_default().split([' ', '\n', '.']).filter(|word| word.len() > 40);
    words.chain(["hunter2"]).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_passwords() -> Result<()> {
    let nats = start(
        "authorization { users = [ { user: bridge, password: right }, \
         { user: reader, password: right, permissions: { publish: { deny: \">\" } } } ] }\n"
            .to_owned(),
    )
    .await?;

    delivers(&nats, json!({ "username": "bridge", "password": "right" })).await?;

    let wrong = is_the_operators(&nats, json!({ "username": "bridge", "password": "hunter2" })).await?;
    assert!(wrong.contains("authorization violation"), "{wrong}");
    is_the_operators(&nats, json!({})).await?;
    let powerless = is_the_operators(&nats, json!({ "username": "reader", "password": "right" })).await?;
    assert!(powerless.to_lowercase().contains("permissions violation"), "{powerless}");
    Ok(())
}

/// A user who may do everything but publish the events themselves: the server says so by an error of the connection, and answers
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_to_publish_is_told_at_once() -> Result<()> {
    let nats = start(
        "authorization { users = [ { user: bridge, password: right, permissions: { publish: [\"$JS.API.>\"] } } ] }\n"
            .to_owned(),
    )
    .await?;
    let connector = connector_with(&nats.url(), "SILENT", json!({ "username": "bridge", "password": "right" }), true);
    let mut running = open(&*connector, claim(0, None)).await?;

    running.offer(1, 1, 10).await;
    let end = running.end().await;

    assert!(matches!(end, Err(ConnectorError::Misconfigured { .. })), "{end:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_nkeys() -> Result<()> {
    let nats = start("authorization { token: right }\n".to_owned()).await?;
    delivers(&nats, json!({ "token": "right" })).await?;
    is_the_operators(&nats, json!({ "token": "hunter2" })).await?;

    // A pair from the NATS documentation.
    let public = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let nats = start(format!("authorization {{ users = [ {{ nkey: {public} }} ] }}\n")).await?;
    delivers(&nats, json!({ "nkey": seed })).await?;
    is_the_operators(&nats, json!({ "nkey": "hunter2" })).await?;
    is_the_operators(&nats, json!({ "credentials_file": "/nowhere/bridge.creds" })).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_files_of_the_operator() -> Result<()> {
    let operator = NatsOperator::new();
    let nats = start(operator.settings()?).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bridge.creds");
    let settings = json!({ "credentials_file": file });

    std::fs::write(&file, operator.credentials(None)?)?;
    delivers(&nats, settings.clone()).await?;

    let expired = operator.credentials(Some(SystemTime::now() - Duration::from_secs(60)))?;
    let (token, seed) = expired.split_once("------END NATS USER JWT------").context("two parts")?;
    for text in [&NatsOperator::new().credentials(None)?, &expired] {
        std::fs::write(&file, text)?;
        let refused = is_the_operators(&nats, settings.clone()).await?;
        assert!(refused.contains("authorization violation"), "{refused}");
    }
    for text in ["", token, seed, &expired.replace("\nSU", "\nSUA")] {
        std::fs::write(&file, text)?;
        let refused = is_the_operators(&nats, settings.clone()).await?;
        assert!(refused.contains("holds no user JWT and seed"), "{refused}");
    }
    std::fs::write(&file, operator.credentials(None)?)?;
    delivers(&nats, settings).await
}

/// Credentials that live for a short time are replaced on disk before they expire: the end of the old ones ends the session, and
/// the next one, which comes soon, reads the new ones.
#[tokio::test(flavor = "multi_thread")]
async fn replaced_credentials_serve_the_session_after_the_old_ones_expired() -> Result<()> {
    let operator = NatsOperator::new();
    let nats = start(operator.settings()?).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bridge.creds");
    let stream = crate::server::new_name("rotation");
    let connector = connector_with(&nats.url(), &stream, json!({ "credentials_file": file }), true);

    std::fs::write(&file, operator.credentials(Some(SystemTime::now() + Duration::from_secs(20)))?)?;
    let mut first = open(&*connector, claim(0, None)).await?;
    first.offer(1, 10, 10).await;
    first.acknowledged_to(10).await?;
    std::fs::write(&file, operator.credentials(None)?)?;
    let end = first.end().await.err().context("the old credentials expire")?;
    assert!(
        matches!(end, ConnectorError::Transient { .. }) && end.to_string().contains("User Authentication Expired"),
        "{end}"
    );

    let mut second = open(&*connector, claim(10, None)).await?;
    second.offer(11, 20, 10).await;
    second.acknowledged_to(20).await?;
    second.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_client_certificates() -> Result<()> {
    let directory = tempfile::tempdir()?;
    make_certificates(directory.path()).await?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("client.crt"), file("client.key"));
    let (server_certificate, server_key) = (file("server.crt"), file("server.key"));
    let tls = |more: &str| {
        format!("tls {{ cert_file: {server_certificate:?}, key_file: {server_key:?}, ca_file: {ca:?}{more} }}\n")
    };
    let plain = start(tls("")).await?;
    delivers(&plain, json!({ "tls": { "ca_file": ca } })).await?;
    is_the_operators(&plain, json!({ "tls": {} })).await?;
    is_the_operators(&plain, json!({ "tls": { "ca_file": "/nowhere/ca.pem" } })).await?;

    let mutual = start(tls(", verify: true")).await?;
    let client = json!({ "ca_file": ca, "certificate_file": certificate, "key_file": key });
    delivers(&mutual, json!({ "tls": client })).await?;
    is_the_operators(&mutual, json!({ "tls": { "ca_file": ca } })).await?;
    Ok(())
}
