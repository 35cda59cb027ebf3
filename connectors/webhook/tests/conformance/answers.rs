//! What the endpoint answers, and what becomes of it.

use std::time::Duration;

use anyhow::Result;
use catalog_bridge_api::{ConnectorError, Ordering};
use catalog_bridge_services::WebhookReply;

use crate::setup::{
    assert_no_secret, build, is_misconfigured, is_transient, messages, receiver, section, session, stored,
};

/// The answer to the third of five events, one after the other.
async fn answered(reply: WebhookReply) -> Result<ConnectorError> {
    let receiver = receiver()?;
    let connector = build(
        crate::setup::section_with(&receiver.address(), serde_json::json!({ "max_in_flight": 1 })),
        Ordering::Entity,
    )?;
    receiver.answer(
        move |request| {
            if request.headers["webhook-id"].ends_with("_3") { reply.clone() } else { WebhookReply::stored() }
        },
    );

    let outcome = session(&*connector, messages(1..=5)).await?;

    assert_eq!(outcome.acknowledged, [1, 2].into(), "what was stored before it, and nothing else");
    assert_eq!(stored(&receiver), [1, 2], "nothing is sent after the first failure");
    let is_settled = outcome.is_settled;
    let error = outcome.error();
    let is_refused = matches!(error, ConnectorError::Refused { .. });
    assert_eq!(is_settled, is_refused, "only a refusal says that the event lands nowhere later: {error}");
    assert_no_secret(&error);
    Ok(error)
}

#[tokio::test]
async fn what_speaks_of_the_event_refuses_it() -> Result<()> {
    for status in [400, 413, 422] {
        let mut reply = WebhookReply::status(status);
        reply.body = "spec.owner is\r\nmissing".to_owned();

        let error = answered(reply).await?;

        assert!(matches!(&error, ConnectorError::Refused { offset, .. } if offset.get() == 3), "{status}: {error}");
        let text = error.to_string();
        assert!(text.contains(&status.to_string()) && text.contains("\"spec.owner is missing\""), "{text}");
        assert!(text.contains("component:default/e3"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn what_passes_is_tried_again() -> Result<()> {
    for status in [408, 409, 425, 429, 500, 502, 503, 504] {
        let error = answered(WebhookReply::status(status)).await?;
        assert!(is_transient(&error), "{status}: {error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn what_an_operator_must_change_is_for_the_operator() -> Result<()> {
    for status in [401, 403, 404, 405, 415, 418, 501] {
        let mut reply = WebhookReply::status(status);
        // As Express says it.
        reply.body = "Cannot POST /hooks/T0KEN?access_token=s3cret".to_owned();

        let error = answered(reply).await?;

        assert!(is_misconfigured(&error), "{status}: {error}");
        assert!(error.to_string().contains(&format!("{status} ")), "{error}");
    }
    Ok(())
}

/// In seconds and as a date.
#[tokio::test]
async fn the_wish_to_be_left_alone_is_passed_on() -> Result<()> {
    let in_an_hour = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3_600));
    for (status, wish, at_least, at_most) in
        [(429, "77", 77, 77), (503, in_an_hour.as_str(), 3_000, 3_600), (429, "tomorrow", 0, 0)]
    {
        let error = answered(WebhookReply::status(status).header("retry-after", wish)).await?;

        let ConnectorError::Transient { retry_after, .. } = error else { panic!("{error}") };
        let seconds = retry_after.map_or(0, |wish| wish.as_secs());
        assert!((at_least..=at_most).contains(&seconds), "{wish}: {seconds}");
    }
    Ok(())
}

#[tokio::test]
async fn gone_stops_the_sink_until_an_operator_decides() -> Result<()> {
    let error = answered(WebhookReply::status(410)).await?;
    assert!(matches!(error, ConnectorError::Diverged { .. }), "{error}");
    assert!(error.to_string().contains("410 Gone") && error.to_string().contains("resume"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_says_where_it_leads() -> Result<()> {
    let elsewhere = receiver()?;
    let target = format!("http://{}/stolen", elsewhere.address());
    for status in [301, 302, 307, 308] {
        let error = answered(WebhookReply::status(status).header("location", &target)).await?;

        assert!(is_misconfigured(&error), "{status}: {error}");
        assert!(error.to_string().contains(&elsewhere.address()), "{error}");
    }
    assert_eq!(elsewhere.asked_count(), 0);
    Ok(())
}

/// One that never ends its answer takes neither memory nor time: what was stored is acknowledged.
#[tokio::test]
async fn an_endless_answer_is_read_no_further_than_it_helps() -> Result<()> {
    let receiver = receiver()?;
    receiver.answer(|_| WebhookReply { body: "x".repeat(50_000_000), status: 200, ..WebhookReply::stored() });
    let connector = build(section(&receiver.address()), Ordering::Entity)?;

    let outcome = session(&*connector, messages(1..=20)).await?;

    outcome.result?;
    assert_eq!(outcome.acknowledged.len(), 20);
    Ok(())
}

/// An answer that does not come is no acknowledgement.
#[tokio::test]
async fn silence_is_trouble_that_passes() -> Result<()> {
    let error = {
        let receiver = receiver()?;
        receiver.answer(|_| WebhookReply { delay: Duration::from_secs(600), ..WebhookReply::stored() });
        let section = crate::setup::section_with(&receiver.address(), serde_json::json!({ "timeout_seconds": 1 }));
        let outcome = session(&*build(section, Ordering::Entity)?, messages(1..=1)).await?;
        assert!(outcome.acknowledged.is_empty());
        outcome.error()
    };
    assert!(is_transient(&error) && error.to_string().contains("timeout_seconds"), "{error}");
    assert_no_secret(&error);
    Ok(())
}
