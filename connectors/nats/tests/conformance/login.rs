//! Logins, TLS and permissions: what delivers, and what is the operator's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{claim, open};
use catalog_bridge_services::{Nats, NatsOptions};
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
        ensure!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    Ok(open.to_string())
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

fn make_certificates(directory: &Path) -> Result<()> {
    const SCRIPT: &str = r#"set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-ca -keyout ca.key -out ca.pem
echo 'subjectAltName=IP:127.0.0.1,DNS:localhost' > names
for who in server client; do
  openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
  openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out $who.crt -extfile names
done"#;
    let output = Command::new("/bin/sh").args(["-c", SCRIPT]).current_dir(directory).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_client_certificates() -> Result<()> {
    let directory = tempfile::tempdir()?;
    make_certificates(directory.path())?;
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
