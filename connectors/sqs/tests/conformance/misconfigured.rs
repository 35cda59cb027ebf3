//! What an operator has to change, what `check` says, and what `ensure` creates.

use anyhow::{Context, Result};
use aws_sdk_sqs::types::QueueAttributeName as Name;
use catalog_bridge_api::{CheckReport, ConnectorError, Ordering};
use serde_json::{Value, json};

use crate::faults::Queue;
use crate::server::{build, build_for, client, create, fresh, section, shared, url};
use crate::session::{messages, open_error, run, run_again};
use crate::stub::{Reply, Stub};

/// What the service's signature errors quote of the request.
const QUOTING: &str = "The request signature we calculated does not match the signature you provided.\n\n\
                       The Canonical String for this request should have been\n'POST\n/\nx-amz-security-token:s3cret'";

/// At every call, in the service's words, and without a secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_must_change_is_told_in_the_services_words() -> Result<()> {
    let queue = Queue::new("operator").await?;
    for (status, code, message) in [
        (403, "AccessDenied", "User: arn:aws:iam::1:user/u is not authorized to perform: sqs:sendmessage"),
        (400, "AccessDeniedException", "no identity-based policy allows the action"),
        (403, "InvalidClientTokenId", "The security token included in the request is invalid."),
        (400, "UnrecognizedClientException", "The security token included in the request is invalid."),
        (403, "SignatureDoesNotMatch", QUOTING),
        (400, "ExpiredTokenException", "The security token included in the request is expired"),
        (400, "KMS.AccessDeniedException", "no kms:GenerateDataKey"),
        (400, "KMS.DisabledException", "the key is disabled"),
        (400, "KMS.NotFoundException", "no such key"),
        (400, "QueueDoesNotExist", "The specified queue does not exist."),
    ] {
        let reply = Reply::Error { status, code, message };
        let of_script = reply.clone();
        queue.stub.script(move |_| of_script.clone());
        let checked = queue.connector.check().await.expect_err(code);
        let opened = open_error(&*queue.connector).await;
        queue.stub.script(move |call| if call.is_send() { reply.clone() } else { Reply::Pass });
        let sent = run(&*queue.connector, messages(3)).await?.result.expect_err(code);

        for error in [checked, opened, sent] {
            assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{code}: {error}");
            let first_line = message.lines().next().unwrap_or_default();
            assert!(error.to_string().contains(code) && error.to_string().contains(first_line), "{error}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }
    Ok(())
}

/// A key that an entry needs and may not use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_fails_for_its_key_is_no_refused_event() -> Result<()> {
    let queue = Queue::new("entry-key").await?;
    queue.stub.script(|call| match call.is_send() {
        true => Reply::Entries {
            failed: vec![0, 1],
            code: "KMS.AccessDeniedException",
            message: "no kms:GenerateDataKey",
            sender_fault: true,
        },
        false => Reply::Pass,
    });

    let error = run(&*queue.connector, messages(2)).await?.result.expect_err("no key");

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("KMS.AccessDeniedException (no kms:GenerateDataKey)"), "{error}");
    Ok(())
}

/// The queue goes in the middle of the work, and comes back by the operator's hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_told_and_never_silently_replaced() -> Result<()> {
    let queue = Queue::new("deleted").await?;
    let ensuring = build_for(section(&queue.stub.endpoint(), &queue.name), true, Ordering::Entity)?;
    let outcome = run(&*ensuring, messages(5)).await?;
    outcome.result?;
    let queue_url = url(&queue.client, &queue.name).await?;
    let (deleting, of_script) = (queue.client.clone(), queue_url.clone());
    queue.stub.script(move |call| {
        if call.is_send() {
            let (client, url) = (deleting.clone(), of_script.clone());
            let delete = async move { client.delete_queue().queue_url(url).send().await.is_ok() };
            // The second request finds it gone already.
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(delete));
        }
        Reply::Pass
    });

    let error = run_again(&*ensuring, messages(9), outcome.state.clone()).await?.result.expect_err("deleted");

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("does not exist") && error.to_string().contains(&queue.name), "{error}");
    queue.stub.script(|_| Reply::Pass);
    let error = run_again(&*ensuring, messages(9), outcome.state.clone()).await?.result.expect_err("still away");
    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("existed and is gone"), "{error}");

    create(&queue.client, &queue.name, &[]).await?;
    run_again(&*ensuring, messages(9), outcome.state).await?.result?;
    assert_eq!(queue.stored().await?, (1..=9).collect());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_absent_at_the_start_is_named() -> Result<()> {
    let endpoint = shared().await?.endpoint();
    let name = fresh("nowhere");
    let connector = build(section(&endpoint, &name))?;

    for error in [connector.check().await.expect_err("absent"), open_error(&*connector).await] {
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("ensure: true") && error.to_string().contains(&name), "{error}");
    }

    create(&client(&endpoint), &name, &[]).await?;
    run(&*connector, messages(3)).await?.result?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensure_creates_a_queue_of_high_throughput_and_changes_none_that_exists() -> Result<()> {
    let endpoint = shared().await?.endpoint();
    let (client, name) = (client(&endpoint), fresh("ensured"));
    let stub = Stub::start(&endpoint).await?;
    let connector = build_for(section(&stub.endpoint(), &name), true, Ordering::Entity)?;
    let report = connector.check().await?;
    assert!(report.facts.iter().any(|fact| fact.contains("will be created")), "{report:?}");
    assert!(url(&client, &name).await.is_err(), "check created it");

    run(&*connector, messages(3)).await?.result?;
    run(&*connector, messages(3)).await?.result?;

    let created: Vec<_> = stub.calls().into_iter().filter(|call| call.action == "CreateQueue").collect();
    assert_eq!(created.len(), 1, "{created:?}");
    assert_eq!(
        created[0].body["Attributes"],
        json!({
            "FifoQueue": "true",
            "DeduplicationScope": "messageGroup",
            "FifoThroughputLimit": "perMessageGroupId",
            "MessageRetentionPeriod": "1209600"
        })
    );
    let url = url(&client, &name).await?;
    let kept = client.get_queue_attributes().queue_url(url).attribute_names(Name::All).send().await?;
    assert_eq!(kept.attributes().and_then(|kept| kept.get(&Name::FifoQueue)).map(String::as_str), Some("true"));
    Ok(())
}

async fn check_of(attributes: Value) -> Result<Result<CheckReport, ConnectorError>> {
    let queue = Queue::new("checked").await?;
    queue.stub.script(move |call| match call.action.as_str() {
        "GetQueueAttributes" => Reply::Answer(json!({ "Attributes": attributes })),
        _ => Reply::Error { status: 403, code: "AccessDenied", message: "check reads attributes only" },
    });
    Ok(queue.connector.check().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_what_is_missing() -> Result<()> {
    let poor = json!({
        "FifoQueue": "true", "DeduplicationScope": "queue", "FifoThroughputLimit": "perQueue",
        "ApproximateNumberOfMessages": "130000", "MaximumMessageSize": "262144", "MessageRetentionPeriod": "3600",
    });
    let report = check_of(poor).await?.context("a usable queue")?;
    for missing in
        ["130000 messages wait", "DeduplicationScope", "message_bytes_max", "dropped after 0.0 days", "not encrypted"]
    {
        assert!(report.warnings.iter().any(|warning| warning.contains(missing)), "{missing}: {report:?}");
    }

    let good = json!({
        "FifoQueue": "true", "DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId",
        "ApproximateNumberOfMessages": "7", "MaximumMessageSize": "1048576", "MessageRetentionPeriod": "1209600",
        "KmsMasterKeyId": "alias/catalog", "RedrivePolicy": "{\"maxReceiveCount\":5}",
    });
    let report = check_of(good).await?.context("a good queue")?;
    assert!(report.warnings.is_empty(), "{report:?}");
    for told in ["holds 7 messages", "high throughput is on", "alias/catalog", "maxReceiveCount"] {
        assert!(report.facts.iter().any(|fact| fact.contains(told)), "{told}: {report:?}");
    }

    let error = check_of(json!({ "QueueArn": "arn:aws:sqs:us-east-1:1:plain" })).await?.expect_err("no FIFO queue");
    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("is no FIFO queue"), "{error}");
    Ok(())
}
