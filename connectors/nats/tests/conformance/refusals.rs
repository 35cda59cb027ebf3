//! What is refused for good and what an operator must change (promise P8).

use anyhow::{Context, Result};
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{claim, message, open};
use serde_json::json;

use crate::server;
use crate::sink::{connector, connector_with};

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
