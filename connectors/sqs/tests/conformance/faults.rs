//! What passes: the session sends again, and nothing is stored twice.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use aws_sdk_sqs::Client;
use catalog_bridge_api::{Connector, ConnectorError};
use catalog_bridge_services::FaultProxy;

use crate::server::{attribute, build, client, create, fresh, section, shared, take_all};
use crate::session::{messages, run};
use crate::stub::{Call, Reply, Stub};

/// A queue of the real server behind a stub.
pub(crate) struct Queue {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) stub: Stub,
    pub(crate) connector: Box<dyn Connector>,
}

impl Queue {
    pub(crate) async fn new(stem: &str) -> Result<Self> {
        let endpoint = shared().await?.endpoint();
        let (client, name) = (client(&endpoint), fresh(stem));
        create(&client, &name, &[]).await?;
        let stub = Stub::start(&endpoint).await?;
        let connector = build(section(&stub.endpoint(), &name))?;
        Ok(Queue { client, name, stub, connector })
    }

    /// The offsets that are stored, each once.
    pub(crate) async fn stored(&self) -> Result<BTreeSet<u64>> {
        let mut stored = BTreeSet::new();
        for message in take_all(&self.client, &self.name).await? {
            let offset: u64 = attribute(&message, catalog_bridge_api::BRIDGE_OFFSET)?.parse()?;
            assert!(stored.insert(offset), "{offset} is stored twice");
        }
        Ok(stored)
    }
}

pub(crate) fn is_about(entry: &serde_json::Value, name: &str) -> bool {
    entry["MessageGroupId"].as_str().is_some_and(|group| group == format!("component:default/{name}"))
}

pub(crate) fn place_of(call: &Call, name: &str) -> Option<usize> {
    call.entries().iter().position(|entry| is_about(entry, name))
}

/// P5: the neighbours of a failed entry are stored, and only it goes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_entry_goes_again_alone() -> Result<()> {
    let queue = Queue::new("entry").await?;
    let mut failures = 0;
    queue.stub.script(move |call| match place_of(call, "e5") {
        Some(place) if failures < 3 => {
            failures += 1;
            Reply::Entries { failed: vec![place], code: "InternalError", message: "again", sender_fault: false }
        }
        _ => Reply::Pass,
    });

    let outcome = run(&*queue.connector, messages(10)).await?;

    outcome.result?;
    let sends: Vec<Call> = queue.stub.calls().into_iter().filter(Call::is_send).collect();
    let alone = sends.iter().filter(|call| call.entries().len() == 1 && place_of(call, "e5").is_some()).count();
    assert_eq!(alone, 3, "{sends:?}");
    let times = |name: &str| sends.iter().filter(|call| place_of(call, name).is_some()).count();
    assert_eq!((times("e4"), times("e5"), times("e6")), (1, 4, 1));
    assert_eq!(queue.stored().await?, (1..=10).collect());
    Ok(())
}

/// A throttled sink slows down; it neither ends nor loses anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_slows_the_session_down() -> Result<()> {
    let queue = Queue::new("throttled").await?;
    let mut number = 0;
    queue.stub.script(move |call| {
        number += usize::from(call.is_send());
        match number % 3 {
            _ if !call.is_send() => Reply::Pass,
            0 => Reply::Error { status: 400, code: "ThrottlingException", message: "Rate exceeded" },
            1 => Reply::Error { status: 403, code: "RequestThrottled", message: "too many" },
            _ => Reply::Pass,
        }
    });

    // Two of three requests fail: an entry that fails five times in a row is rare, and then the session ends.
    let mut left = messages(200);
    while !left.is_empty() {
        let outcome = run(&*queue.connector, left.clone()).await?;
        assert!(!outcome.acknowledged.is_empty(), "{:?}", outcome.result);
        left.retain(|message| !outcome.acknowledged.contains(&message.offset().get()));
    }

    assert_eq!(queue.stored().await?, (1..=200).collect());
    Ok(())
}

/// P7: what does not pass is told, in the service's words, after some tries of the same entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_that_stays_ends_the_session() -> Result<()> {
    let queue = Queue::new("trouble").await?;
    for (reply, words) in [
        (Reply::Error { status: 400, code: "RequestThrottled", message: "slow down" }, "RequestThrottled (slow down"),
        (
            Reply::Error { status: 400, code: "KMS.ThrottlingException", message: "keys" },
            "KMS.ThrottlingException (keys",
        ),
        (Reply::Error { status: 500, code: "InternalFailure", message: "oh" }, "InternalFailure (oh"),
        (Reply::Foreign { status: 503, text: "<html>bad gateway</html>" }, "HTTP 503"),
        (Reply::Foreign { status: 404, text: "not here" }, "HTTP 404"),
    ] {
        let before = queue.stub.calls().len();
        let of_script = reply.clone();
        queue.stub.script(move |call| if call.is_send() { of_script.clone() } else { Reply::Pass });

        let outcome = run(&*queue.connector, messages(3)).await?;

        let error = outcome.result.err().with_context(|| format!("{reply:?} passed"))?;
        assert!(matches!(error, ConnectorError::Transient { .. }), "{reply:?}: {error}");
        assert!(error.to_string().contains(words), "{error}");
        let calls = queue.stub.calls().split_off(before);
        let sends = |name: &str| calls.iter().filter(|call| place_of(call, name).is_some()).count();
        assert_eq!(["e1", "e2", "e3"].map(sends).into_iter().max(), Some(5), "{reply:?}");
        assert!(outcome.acknowledged.is_empty());
    }
    Ok(())
}

/// P6: stored, and the answer was lost: the same deduplication ids go again, and the queue keeps one of each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_store_nothing_twice() -> Result<()> {
    let queue = Queue::new("lost").await?;
    let mut number = 0;
    queue.stub.script(move |call| {
        number += usize::from(call.is_send());
        if call.is_send() && number <= 3 { Reply::LoseAnswer } else { Reply::Pass }
    });

    let outcome = run(&*queue.connector, messages(40)).await?;

    outcome.result?;
    let sent: usize = queue.stub.calls().iter().map(|call| call.entries().len()).sum();
    assert!(sent > 40, "nothing was sent again");
    assert_eq!(queue.stored().await?, (1..=40).collect());
    Ok(())
}

/// A service that accepts connections and never answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_an_answer_is_given_up_and_sent_again() -> Result<()> {
    let queue = Queue::new("frozen").await?;
    let proxy = FaultProxy::start(queue.stub.address())?;
    let connector = build(section(&format!("http://{}", proxy.address()), &queue.name))?;
    let mut is_first = true;
    let (told, mut frozen) = tokio::sync::mpsc::unbounded_channel();
    queue.stub.script(move |call| {
        if call.is_send() && std::mem::take(&mut is_first) {
            let _ = told.send(());
        }
        Reply::Pass
    });
    let delivering = tokio::spawn(async move { run(&*connector, messages(20)).await });
    frozen.recv().await.context("a request")?;
    proxy.freeze()?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    proxy.thaw()?;

    delivering.await??.result?;

    assert_eq!(queue.stored().await?, (1..=20).collect());
    Ok(())
}

/// Several requests are under way at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_side_by_side() -> Result<()> {
    let queue = Queue::new("many").await?;

    let outcome = run(&*queue.connector, messages(900)).await?;

    outcome.result?;
    assert!(queue.stub.most_under_way() > 1, "one request after the other");
    let full = queue.stub.calls().iter().filter(|call| call.entries().len() == 10).count();
    assert!(full > 20, "only {full} full requests for 900 messages");
    assert_eq!(queue.stored().await?.len(), 900);
    Ok(())
}

/// No server at all is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_server_is_waited_for() -> Result<()> {
    let queue = Queue::new("absent").await?;
    let proxy = FaultProxy::start(queue.stub.address())?;
    let connector = build(section(&format!("http://{}", proxy.address()), &queue.name))?;
    proxy.cut()?;
    let outcome = run(&*connector, messages(5)).await?;
    let error = outcome.result.expect_err("nobody is there");
    assert!(matches!(error, ConnectorError::Transient { .. }), "{error}");
    assert!(error.to_string().contains(&proxy.address()), "{error}");

    proxy.mend()?;

    run(&*connector, messages(5)).await?.result?;
    assert_eq!(queue.stored().await?, (1..=5).collect());
    Ok(())
}
