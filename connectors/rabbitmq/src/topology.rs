//! Exchange, queue and lock: looks at them, and creates what `ensure` asks for.
//!
//! Keeps P9 by the lock: an exclusive queue belongs to the connection that declared it and goes with it, so no second connection
//! publishes for the same sink while the first one lives. What exists is never changed.

use std::time::Duration;

use catalog_bridge_api::{Claim, ConnectorError};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Error, ExchangeKind};
use tokio::time::Instant;

use crate::config::{Config, ExchangeType, HEARTBEAT_SECONDS};
use crate::errors::{broker_words, code, connector_error};
use crate::link::{ANSWER_TIMEOUT, Link, in_time};

/// A connection of ours that was just closed may hold the lock for moments.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Declares the lock queue on this connection.
pub(crate) async fn lock(link: &Link, claim: &Claim) -> Result<(), ConnectorError> {
    let name = format!("catalog-bridge.lock.{}.{}", claim.log_id, claim.sink.as_str());
    let end = Instant::now() + LOCK_PATIENCE;
    let mut pause = Duration::from_millis(20);
    loop {
        let channel = link.channel().await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(ShortString::from(&*name), options, FieldTable::default());
        let Err(error) = answered(link, "declare the lock queue", declare).await? else { return Ok(()) };
        if broker_words(&error).is_none_or(|(code, _)| code != code::RESOURCE_LOCKED) {
            return Err(connector_error("declare the lock queue", &link.endpoint, &error));
        }
        if Instant::now() >= end {
            let linger = 2 * HEARTBEAT_SECONDS;
            let words = format!(
                "another connection publishes for this sink: it owns the queue {name:?}; when its process is gone, the \
                 broker ends it within the heartbeat ({linger} s)"
            );
            return Err(ConnectorError::transient("take the lock", &*link.endpoint, words));
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(Duration::from_millis(500));
    }
}

/// Makes sure that the exchange and the queue are there; with `ensure` creates and binds what is missing.
pub(crate) async fn prepare(link: &Link, config: &Config, ensure: bool) -> Result<(), ConnectorError> {
    if let Some(exchange) = config.exchange.fixed().filter(|exchange| !exchange.is_empty()) {
        prepare_exchange(link, config, exchange, ensure).await?;
    }
    let Some(queue) = &config.queue else { return Ok(()) };
    if let Err(error) = look_at_queue(link, queue).await? {
        if !ensure || !is_missing(&error) {
            return Err(connector_error("look at the queue", &link.endpoint, &error));
        }
        create_queue(link, queue).await?;
    }
    match config.exchange.fixed() {
        Some(exchange) if ensure && !exchange.is_empty() => bind(link, queue, exchange).await,
        _ => Ok(()),
    }
}

/// The same for one exchange of a template.
pub(crate) async fn prepare_one_of(link: &Link, config: &Config, exchange: &str) -> Result<(), ConnectorError> {
    prepare_exchange(link, config, exchange, true).await?;
    match &config.queue {
        Some(queue) => bind(link, queue, exchange).await,
        None => Ok(()),
    }
}

async fn prepare_exchange(link: &Link, config: &Config, exchange: &str, ensure: bool) -> Result<(), ConnectorError> {
    let Err(error) = look_at_exchange(link, exchange).await? else { return Ok(()) };
    if !ensure || !is_missing(&error) {
        return Err(connector_error("look at the exchange", &link.endpoint, &error));
    }
    let kind = match config.exchange_type {
        ExchangeType::Topic => ExchangeKind::Topic,
        ExchangeType::Fanout => ExchangeKind::Fanout,
    };
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let channel = link.channel().await?;
    let declare = channel.exchange_declare(exchange.into(), kind, options, FieldTable::default());
    in_time("create the exchange", &link.endpoint, declare).await
}

/// What there is, for `check`: facts and warnings.
pub(crate) async fn look(
    link: &Link,
    config: &Config,
    ensure: bool,
) -> Result<(Vec<String>, Vec<String>), ConnectorError> {
    let (mut facts, mut warnings) = (Vec::new(), Vec::new());
    let mut tell = |what: &str, seen: Result<(), Error>| match seen {
        Ok(()) => {
            facts.push(format!("{what} exists"));
            Ok(true)
        }
        Err(error) if ensure && is_missing(&error) => {
            facts.push(format!("{what} does not exist yet and will be created"));
            Ok(false)
        }
        Err(error) => Err(connector_error("look at the destination", &link.endpoint, &error)),
    };
    if let Some(exchange) = config.exchange.fixed().filter(|exchange| !exchange.is_empty()) {
        tell(&format!("exchange {exchange:?}"), look_at_exchange(link, exchange).await?)?;
    }
    if let Some(queue) = &config.queue
        && tell(&format!("queue {queue:?}"), look_at_queue(link, queue).await?)?
        && is_of_other_type(link, queue).await?
    {
        warnings.push(format!(
            "queue {queue:?} is no durable quorum queue: what it confirmed may be lost when a broker crashes"
        ));
    }
    Ok((facts, warnings))
}

async fn look_at_exchange(link: &Link, exchange: &str) -> Result<Result<(), Error>, ConnectorError> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let channel = link.channel().await?;
    let declare = channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default());
    answered(link, "look at the exchange", declare).await
}

async fn look_at_queue(link: &Link, queue: &str) -> Result<Result<(), Error>, ConnectorError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = link.channel().await?;
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    Ok(answered(link, "look at the queue", declare).await?.map(drop))
}

/// A declaration with another type than the existing queue's is refused by the broker, and changes nothing.
async fn is_of_other_type(link: &Link, queue: &str) -> Result<bool, ConnectorError> {
    let channel = link.channel().await?;
    let declare = channel.queue_declare(queue.into(), durable(), quorum());
    let answer = answered(link, "look at the queue", declare).await?;
    let words = answer.as_ref().err().and_then(broker_words);
    Ok(words.is_some_and(|(code, words)| {
        code == code::PRECONDITION_FAILED && (words.contains("'x-queue-type'") || words.contains("'durable'"))
    }))
}

async fn create_queue(link: &Link, queue: &str) -> Result<(), ConnectorError> {
    let channel = link.channel().await?;
    let declare = channel.queue_declare(queue.into(), durable(), quorum());
    in_time("create the queue", &link.endpoint, declare).await.map(drop)
}

async fn bind(link: &Link, queue: &str, exchange: &str) -> Result<(), ConnectorError> {
    let channel = link.channel().await?;
    let bind = channel.queue_bind(
        queue.into(),
        exchange.into(),
        "#".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    in_time("bind the queue", &link.endpoint, bind).await
}

fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

/// The broker's own answer, which may be a refusal; any other end is an error.
async fn answered<T>(
    link: &Link,
    action: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<Result<T, Error>, ConnectorError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Err(error)) if broker_words(&error).is_none() => Err(connector_error(action, &link.endpoint, &error)),
        Ok(answer) => Ok(answer),
        Err(_) => {
            Err(ConnectorError::transient(action, &*link.endpoint, format!("no answer within {ANSWER_TIMEOUT:?}")))
        }
    }
}

/// What a broker says of a node that is away is `404` too, and nothing to create over.
fn is_missing(error: &Error) -> bool {
    broker_words(error).is_some_and(|(code, words)| code == code::NOT_FOUND && words.contains("NOT_FOUND - no "))
}
