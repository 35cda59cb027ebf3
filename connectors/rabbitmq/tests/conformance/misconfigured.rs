//! What an operator has to change, what is waited for, and what `ensure` creates.

use anyhow::Result;
use catalog_bridge_api::ConnectorError;
use catalog_bridge_services::FaultProxy;
use serde_json::json;

use crate::broker::{bind, build, channel, declare, fresh, section, shared, take_all};
use crate::driver::{Sink, open_error};

#[tokio::test]
async fn a_wrong_password_is_for_the_operator_and_in_no_text() -> Result<()> {
    let address = shared().await?.address(1);
    let url = format!("amqp://guest:s3cret-wrong@{address}/%2f");
    let connector = build(json!({ "url": url, "exchange": "amq.topic" }), false)?;

    let error = connector.check().await.expect_err("refused");

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("ACCESS_REFUSED") && error.to_string().contains(&address), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_missing_virtual_host_exchange_or_queue_is_named() -> Result<()> {
    let address = shared().await?.address(1);
    let url = format!("amqp://guest:guest@{address}/%2f");
    for (section, named) in [
        (json!({ "url": format!("amqp://guest:guest@{address}/nowhere"), "exchange": "amq.topic" }), "nowhere"),
        (json!({ "url": url, "exchange": "no-such-exchange" }), "no-such-exchange"),
        (json!({ "url": url, "exchange": "amq.topic", "queue": "no-such-queue" }), "no-such-queue"),
    ] {
        let connector = build(section, false)?;
        for error in [connector.check().await.expect_err(named), open_error(&*connector).await] {
            assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }
    Ok(())
}

/// An exchange of a template is known only with the event.
#[tokio::test]
async fn a_missing_exchange_of_a_template_ends_the_session_with_the_brokers_words() -> Result<()> {
    let address = shared().await?.address(1);
    let url = format!("amqp://guest:guest@{address}/%2f");
    let connector = build(json!({ "url": url, "exchange": "nowhere.{kind}" }), false)?;

    let error = Sink::new(10, 10).session(&*connector).await?.expect_err("no exchange");

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("no exchange 'nowhere.component'"), "{error}");
    Ok(())
}

#[tokio::test]
async fn ensure_creates_a_bound_quorum_queue_and_changes_nothing_that_exists() -> Result<()> {
    let rabbit = shared().await?;
    let (address, name) = (rabbit.address(1), fresh("ensured"));
    let connector = build(section(&address, &name), true)?;
    let report = connector.check().await?;
    assert!(report.facts.iter().any(|fact| fact.contains("will be created")), "{report:?}");

    Sink::new(20, 5).deliver(&*connector).await?;
    Sink::new(20, 5).deliver(&*connector).await?;

    assert_eq!(take_all(&address, &name).await?.len(), 40);
    let queues = rabbit.control(1, &["list_queues", "name", "type", "durable"]).await?;
    let line = queues.lines().find(|line| line.starts_with(&name)).unwrap_or_default();
    assert!(line.contains("quorum") && line.contains("true"), "{queues}");
    let report = connector.check().await?;
    assert!(report.warnings.is_empty() && report.facts.iter().all(|fact| !fact.contains("will be")), "{report:?}");
    Ok(())
}

#[tokio::test]
async fn ensure_creates_the_exchanges_of_a_template() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("each"));
    let mut section = section(&address, &name);
    section["exchange"] = json!(format!("{name}.{{name}}"));
    let connector = build(section, true)?;

    let sink = Sink::new(30, 3);
    sink.deliver(&*connector).await?;

    sink.check(&take_all(&address, &name).await?, 1)
}

#[tokio::test]
async fn a_classic_queue_is_warned_of() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("classic"));
    let (_connection, channel) = channel(&address).await?;
    declare(&channel, &name, &[]).await?;
    bind(&channel, &name, "#").await?;

    let report = build(section(&address, &name), false)?.check().await?;

    assert!(report.warnings.iter().any(|warning| warning.contains("no durable quorum queue")), "{report:?}");
    Ok(())
}

#[tokio::test]
async fn an_absent_broker_is_waited_for() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("absent"));
    let proxy = FaultProxy::start(&address)?;
    proxy.cut()?;
    let connector = build(section(&proxy.address(), &name), true)?;
    let error = open_error(&*connector).await;
    assert!(matches!(error, ConnectorError::Transient { .. }), "{error}");

    proxy.mend()?;

    let sink = Sink::new(20, 5);
    sink.deliver(&*connector).await?;
    sink.check(&take_all(&address, &name).await?, 1)
}
