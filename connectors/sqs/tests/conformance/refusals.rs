//! What the service takes never, what it takes only in another form, and how a message looks in the queue.

use anyhow::{Context, Result};
use catalog_bridge_api::ConnectorError;
use serde_json::Value;

use crate::faults::{Queue, place_of};
use crate::server::{attribute, take_all};
use crate::session::{log_id, message, messages, run};
use crate::stub::Reply;

#[track_caller]
fn assert_refused(result: Result<(), ConnectorError>, expected: u64, words: &str) {
    let error = result.expect_err("refused");
    assert!(matches!(&error, ConnectorError::Refused { offset, .. } if offset.get() == expected), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// P8: an entry in the middle is refused while its neighbours are stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_entry_is_named_and_its_neighbours_are_acknowledged() -> Result<()> {
    let queue = Queue::new("refused").await?;
    queue.stub.script(|call| match place_of(call, "e5") {
        Some(place) => Reply::Entries {
            failed: vec![place],
            code: "InvalidMessageContents",
            message: "The message contains characters outside the allowed set.",
            sender_fault: true,
        },
        None => Reply::Pass,
    });

    let outcome = run(&*queue.connector, messages(10)).await?;

    assert_refused(outcome.result, 5, "InvalidMessageContents (The message contains characters outside");
    assert_eq!(outcome.acknowledged, (1..=10).filter(|offset| *offset != 5).collect());
    assert_eq!(queue.stored().await?, outcome.acknowledged);
    assert!(outcome.is_settled, "each entry was answered");
    Ok(())
}

/// P5: the answer to one entry is lost before another is refused, so that the first may be stored after the session's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_an_unanswered_request_says_not_that_all_is_over() -> Result<()> {
    let queue = Queue::new("unanswered").await?;
    let mut lost = false;
    queue.stub.script(move |call| match place_of(call, "e5") {
        Some(_) if !std::mem::replace(&mut lost, true) => Reply::LoseAnswer,
        Some(place) => {
            Reply::Entries { failed: vec![place], code: "InvalidMessageContents", message: "never", sender_fault: true }
        }
        None => Reply::Pass,
    });

    let outcome = run(&*queue.connector, messages(10)).await?;

    assert_refused(outcome.result, 5, "InvalidMessageContents");
    assert!(!outcome.is_settled);
    Ok(())
}

/// The service refuses the whole request and does not say for which entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_refused_request_the_one_to_blame_is_found() -> Result<()> {
    let queue = Queue::new("whole").await?;
    queue.stub.script(|call| match place_of(call, "e5") {
        Some(_) => {
            Reply::Error { status: 400, code: "InvalidParameterValue", message: "Value for a parameter is invalid" }
        }
        None => Reply::Pass,
    });

    let outcome = run(&*queue.connector, messages(10)).await?;

    assert_refused(outcome.result, 5, "InvalidParameterValue (Value for a parameter is invalid, HTTP 400)");
    let stored = queue.stored().await?;
    assert!(outcome.acknowledged.is_subset(&stored) && !stored.contains(&5), "{stored:?}");
    Ok(())
}

/// The real server's own refusal, for a queue that takes less than the sink believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_escapes_made_too_large_is_refused_before_it_is_sent() -> Result<()> {
    let queue = Queue::new("large").await?;
    let mut all = messages(4);
    all[2].body = format!("\"{}\"", "\u{ffff}".repeat(200_000)).into();

    let outcome = run(&*queue.connector, all).await?;

    assert_refused(outcome.result, 3, "more than message_bytes_max (1048576)");
    assert!(!queue.stored().await?.contains(&3));
    Ok(())
}

/// Characters that JSON allows and SQS refuses arrive, and so do names that are no ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn characters_that_the_service_refuses_arrive_escaped() -> Result<()> {
    let queue = Queue::new("characters").await?;
    let text = "{\"subject\":\"component:default/ü \u{ffff}\",\"text\":\"a\u{fffe}b\\\\\u{ffff}🦀\\u0001\"}";
    let mut odd = message(1, "ü \u{ffff}");
    odd.body = text.into();
    odd.attributes = vec![("subject", odd.entity_ref.to_string())];

    run(&*queue.connector, vec![odd, message(2, &"n".repeat(300))]).await?.result?;

    let found = take_all(&queue.client, &queue.name).await?;
    assert_eq!(found.len(), 2);
    let odd = found.iter().find(|message| attribute(message, "ce-subject").is_ok()).context("the odd one")?;
    let parsed: Value = serde_json::from_str(odd.body().context("a body")?)?;
    assert_eq!(parsed, serde_json::from_str::<Value>(text)?);
    assert_eq!(attribute(odd, "ce-subject")?, "component:default/ü \u{fffd}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_carries_its_identity_in_attributes() -> Result<()> {
    let queue = Queue::new("attributes").await?;
    let mut binary = message(2, "b");
    binary.content_type = "application/json";
    let names = ["specversion", "id", "source", "type", "subject", "time", "partitionkey", "sequence"];
    binary.attributes = names.iter().map(|name| (*name, format!("the {name}"))).collect();

    run(&*queue.connector, vec![message(1, "a"), binary]).await?.result?;

    let found = take_all(&queue.client, &queue.name).await?;
    let by_offset =
        |offset: &str| found.iter().find(|message| attribute(message, "catalog-bridge-offset").ok() == Some(offset));
    let names = |offset: &str| -> Result<String> {
        let attributes = by_offset(offset).context("stored")?.message_attributes().context("attributes")?;
        let mut names: Vec<&str> = attributes.keys().map(String::as_str).collect();
        names.sort_unstable();
        Ok(names.join(" "))
    };
    let bridge = "catalog-bridge-generation catalog-bridge-log-id catalog-bridge-offset";
    assert_eq!(names("1")?, format!("{bridge} content-type event-type kind"));
    let events = "ce-id ce-source ce-specversion ce-subject ce-time ce-type";
    assert_eq!(names("2")?, format!("{bridge} {events} content-type"));
    let first = by_offset("1").context("stored")?;
    assert_eq!(attribute(first, "catalog-bridge-log-id")?, log_id().to_string());
    assert_eq!((attribute(first, "event-type")?, attribute(first, "kind")?), ("updated", "component"));
    let system = first.attributes().context("system attributes")?;
    let system = |name: aws_sdk_sqs::types::MessageSystemAttributeName| system.get(&name).map(String::as_str);
    assert_eq!(system(aws_sdk_sqs::types::MessageSystemAttributeName::MessageGroupId), Some("component:default/a"));
    assert_eq!(system(aws_sdk_sqs::types::MessageSystemAttributeName::MessageDeduplicationId), Some("12345678.1.1"));
    Ok(())
}
