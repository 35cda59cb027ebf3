//! What is refused for good and what an operator must change (promise P8).

use anyhow::{Context, Result};
use async_nats::jetstream::stream;
use catalog_bridge_api::ConnectorError;
use serde_json::json;

use crate::server;
use crate::sink::{claim, connector, connector_with, message, open};

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_message_is_refused_after_everything_before_it_is_acknowledged() -> Result<()> {
    let url = server::shared().await.url();
    let limited = stream::Config { max_message_size: 20_000, ..stream::Config::default() };
    // The server's own limit is found by the client, the stream's by the server.
    for (settings, size) in [(stream::Config::default(), 1_100_000), (limited, 30_000)] {
        let stream = server::create_with(&url, "oversize", settings).await?;
        let connector = connector(&url, &stream, json!({}));
        let mut running = open(&*connector, claim(0, None)).await?;

        running.offer(1, 200, 100).await;
        running.offer(201, 201, size).await;
        running.offer(202, 220, 100).await;
        let end = running.end().await;

        assert!(matches!(end, Err(ConnectorError::Refused { offset, .. }) if offset == 201.into()), "{end:?}");
        assert_eq!(running.prefix(), 200);
        // As the driver does with `on_refused: skip`.
        let state = running.state.clone();
        let mut running = open(&*connector, claim(201, state)).await?;
        running.offer(202, 220, 100).await;
        running.acknowledged_to(220).await?;
        running.finish().await?;
        let held = server::offsets(&server::read(&url, &stream).await?);
        assert_eq!(held, (1..=200).chain(202..=220).collect::<Vec<_>>());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_is_the_operators_or_is_created() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::new_name("nowhere");
    let without = connector(&url, &stream, json!({}));
    for error in
        [without.open(claim(0, None)).await.err().context("opened")?, without.check().await.err().context("checked")?]
    {
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("ensure: true"), "{error}");
    }

    let ensuring = connector_with(&url, &stream, json!({}), true);
    ensuring.check().await?;
    let mut running = open(&*ensuring, claim(0, None)).await?;
    running.offer(1, 10, 10).await;
    running.acknowledged_to(10).await?;
    running.finish().await?;

    assert_eq!(server::read(&url, &stream).await?.len(), 10);
    let report = without.check().await?;
    assert!(report.warnings.iter().any(|warning| warning.contains("one replica")), "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_for_other_subjects_is_the_operators() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::create(&url, "subjects").await?;
    let connector = connector(&url, &stream, json!({ "subject": "elsewhere.{kind}" }));

    let error = connector.open(claim(0, None)).await.err().context("opened")?;

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("elsewhere.*"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_stay_within_their_token() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::create(&url, "hostile").await?;
    let connector = connector(&url, &stream, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;
    for (offset, name) in [(1, "a.b"), (2, "*"), (3, ">"), (4, "a b\u{a0}ü"), (5, "x PUB y 0")] {
        let mut hostile = message(offset, 10);
        hostile.entity_ref = catalog_bridge_api::EntityRef::from_parts("component", "default", name)?;
        hostile.attributes = vec![("subject", hostile.entity_ref.to_string())];
        running.feed.offer(hostile).await;
    }
    running.acknowledged_to(5).await?;
    running.finish().await?;

    let records = server::read(&url, &stream).await?;
    let subjects: Vec<_> = records.iter().map(|record| record.subject.trim_start_matches(&stream)).collect();
    assert_eq!(
        subjects,
        [
            ".component.default.a~2Eb",
            ".component.default.~2A",
            ".component.default.~3E",
            ".component.default.a~20b~C2~A0~C3~BC",
            ".component.default.x~20pub~20y~200",
        ]
    );
    assert_eq!(records[3].headers["ce-subject"], "component:default/a%20b%C2%A0%C3%BC");
    Ok(())
}
