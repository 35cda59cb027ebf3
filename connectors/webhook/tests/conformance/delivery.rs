//! How requests look, how they are signed, and how many there are at once.

use std::time::Duration;

use anyhow::{Context, Result};
use catalog_bridge_api::{Encoding, Lease, Ordering};
use catalog_bridge_services::{FaultProxy, WebhookReply};
use serde_json::json;

use crate::setup::{
    NEW_SECRET, SECRET, assert_no_secret, build, is_misconfigured, messages, receiver, section, section_with, session,
    session_under, stored, wait_until,
};

#[tokio::test]
async fn a_request_is_signed_and_tells_log_generation_and_offset() -> Result<()> {
    let receiver = receiver()?;
    let connector = build(section(&receiver.address()), Ordering::Entity)?;
    assert_eq!(connector.limits().encoding, Encoding::Cloudevents);

    session(&*connector, messages(17..=17)).await?.result?;

    let request = receiver.stored().pop().context("one request")?;
    assert_eq!(request.valid_signatures, 1);
    assert_eq!(request.target, "/hooks/T0KEN?access_token=s3cret");
    for (name, value) in [
        ("webhook-id", "00000000_3_17"),
        ("content-type", "application/cloudevents+json"),
        ("catalog-bridge-log-id", "00000000-0000-0000-0000-000000000007"),
        ("catalog-bridge-generation", "3"),
        ("catalog-bridge-offset", "17"),
    ] {
        assert_eq!(request.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(request.headers["user-agent"].starts_with("catalog-bridge/"));
    Ok(())
}

/// The HTTP binding of CloudEvents, binary mode: attributes are headers, escaped.
#[tokio::test]
async fn attributes_become_headers() -> Result<()> {
    let receiver = receiver()?;
    let connector = build(section(&receiver.address()), Ordering::Entity)?;
    let mut messages = messages(1..=1);
    messages[0].attributes = vec![("specversion", "1.0".to_owned()), ("subject", "component:default/名 前".to_owned())];
    messages[0].content_type = "application/json";

    session(&*connector, messages).await?.result?;

    let request = receiver.stored().pop().context("one request")?;
    assert_eq!(request.headers["ce-specversion"], "1.0");
    assert_eq!(request.headers["ce-subject"], "component:default/%E5%90%8D%20%E5%89%8D");
    assert_eq!(request.headers["content-type"], "application/json");
    Ok(())
}

#[tokio::test]
async fn while_a_secret_is_replaced_both_sign() -> Result<()> {
    let receiver = receiver()?;
    let connector =
        build(section_with(&receiver.address(), json!({ "secret": [NEW_SECRET, SECRET] })), Ordering::Entity)?;
    for known in [&[SECRET][..], &[NEW_SECRET], &[SECRET, NEW_SECRET]] {
        receiver.accept_secrets(known);
        session(&*connector, messages(1..=1)).await?.result?;
        assert_eq!(receiver.stored().last().map(|request| request.valid_signatures), Some(known.len()));
    }
    Ok(())
}

/// Within a session and without a failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_a_file_is_read_again() -> Result<()> {
    let receiver = receiver()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n"))?;
    let secret = format!("file:{}", file.display());
    // Ten events a second: the session outlives the change.
    let change = json!({ "secret": secret, "max_rate": 10.0 });
    let connector = build(section_with(&receiver.address(), change), Ordering::Entity)?;
    receiver.accept_secrets(&[SECRET, NEW_SECRET]);
    let running = tokio::spawn(async move { session(&*connector, messages(1..=250)).await });
    wait_until("the first arrives", || !receiver.stored().is_empty()).await?;

    std::fs::write(&file, NEW_SECRET)?;
    let signed_with_old = |receiver: &catalog_bridge_services::WebhookReceiver| {
        receiver.stored().last().map(|request| request.headers["webhook-signature"].clone())
    };
    let length = signed_with_old(&receiver).context("a signature")?.len();
    let outcome = running.await??;

    outcome.result?;
    assert_eq!(signed_with_old(&receiver).context("a signature")?.len(), length, "one signature each");
    // Now the old one alone would not do.
    let last = receiver.stored().pop().context("a request")?;
    receiver.accept_secrets(&[NEW_SECRET]);
    let again =
        reqwest::Client::builder().no_proxy().build()?.post(format!("http://{}{}", receiver.address(), last.target));
    let again = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .iter()
        .fold(again, |again, name| again.header(*name, &last.headers[*name]));
    assert!(
        again.body(last.body.clone()).send().await?.status().is_success(),
        "the last is signed with the new secret"
    );
    Ok(())
}

#[tokio::test]
async fn a_missing_or_wrong_secret_is_named_by_its_file() -> Result<()> {
    let receiver = receiver()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("secret");
    let change = json!({ "secret": format!("file:{}", file.display()) });
    let connector = build(section_with(&receiver.address(), change), Ordering::Entity)?;
    for content in [None, Some("whsec_hunter2")] {
        if let Some(content) = content {
            std::fs::write(&file, content)?;
        }
        let error = connector.check().await.expect_err("no secret");
        assert!(is_misconfigured(&error) && error.to_string().contains("secret"), "{error}");
        assert_no_secret(&error);
    }
    assert_eq!(receiver.asked_count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_wrong_signature_is_for_the_operator() -> Result<()> {
    let receiver = receiver()?;
    receiver.accept_secrets(&[NEW_SECRET]);
    let connector = build(section(&receiver.address()), Ordering::Entity)?;

    let outcome = session(&*connector, messages(1..=50)).await?;

    assert!(outcome.acknowledged.is_empty());
    assert_eq!(receiver.asked_count(), 1, "an endpoint in trouble is asked once");
    let error = outcome.error();
    assert!(is_misconfigured(&error) && error.to_string().contains("401"), "{error}");
    assert_no_secret(&error);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_at_once_up_to_the_bound() -> Result<()> {
    let receiver = receiver()?;
    receiver.answer(|_| WebhookReply { delay: Duration::from_millis(20), ..WebhookReply::stored() });
    let connector = build(section_with(&receiver.address(), json!({ "max_in_flight": 5 })), Ordering::Entity)?;

    session(&*connector, messages(1..=100)).await?.result?;

    assert_eq!(receiver.open_max(), 5);
    assert_eq!(receiver.stored().len(), 100);
    Ok(())
}

/// Compared within one run: at a quarter of the rate the same events take about four times as long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_is_kept() -> Result<()> {
    let receiver = receiver()?;
    let mut seconds = Vec::new();
    for rate in [160.0, 40.0] {
        let connector = build(section_with(&receiver.address(), json!({ "max_rate": rate })), Ordering::Entity)?;
        let before = receiver.stored().len();
        session(&*connector, messages(1..=160)).await?.result?;
        let arrived: Vec<_> = receiver.stored().drain(before..).map(|request| request.at).collect();
        seconds.push((arrived[159] - arrived[0]).as_secs_f64());
    }
    println!("160 events at 160/s: {:.2} s, at 40/s: {:.2} s", seconds[0], seconds[1]);
    // The slower can only be late, never early.
    assert!(seconds[1] >= 0.9 * 159.0 / 40.0, "{seconds:?}");
    assert!(seconds[0] >= 0.9 * 159.0 / 160.0, "{seconds:?}");
    assert!(seconds[1] > 1.5 * seconds[0], "{seconds:?}");
    Ok(())
}

/// A process that was frozen while it connected sends nothing when it wakes without its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_on_a_connection_that_came_after_the_lease() -> Result<()> {
    let directory = tempfile::tempdir()?;
    catalog_bridge_services::make_certificates(directory.path()).await?;
    let receiver = receiver()?;
    let front = crate::targets::TlsFront::start(directory.path(), &receiver.address()).await?;
    let proxy = FaultProxy::start(&front.address)?;
    // The TLS handshake hangs while the lease ends.
    proxy.freeze()?;
    let change = json!({
        "url": format!("https://{}/", proxy.address()),
        "tls": { "ca_file": directory.path().join("ca.pem") },
    });
    let connector = build(section_with("unused", change), Ordering::Entity)?;
    let lease = Lease::unlimited();
    let running = tokio::spawn({
        let lease = lease.clone();
        async move { session_under(&*connector, messages(1..=3), lease).await }
    });
    wait_until("the proxy sees a connection", || proxy.accepted_count() > 0).await?;

    lease.end();
    proxy.thaw()?;

    running.await??.result?;
    assert_eq!((receiver.asked_count(), stored(&receiver)), (0, Vec::new()));
    Ok(())
}
