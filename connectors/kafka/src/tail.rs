//! What a topic's ends say about us: the last record of ours in each partition.
//!
//! A record counts by the bridge's own headers. One of our log above its head tells that the log was restored (`AheadOfLog`).
//! Behind the fence of a transactional id the last committed offset of this sink and generation in a partition is exact,
//! because each partition receives offsets increasing; without the fence it is only a hint, and is not used to skip.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use catalog_bridge_api::{Claim, ConnectorError, Offset};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as Position, TopicPartitionList};

use crate::config::Config;
use crate::errors;
use crate::record::{self, Origin};
use crate::reports::Context;
use crate::topic::{Pin, QUESTION_TIMEOUT};

/// How many records the first look at a partition's end takes in; a further look takes eight times as many.
const FIRST_LOOK: i64 = 64;
/// A search longer than this is remembered, so that it is made once.
const LONG_SEARCH: i64 = 10_000;
/// How many partitions' searches are remembered: the connector's state is at most 4 KiB.
const REMEMBERED_MAX: usize = 100;
/// How long a look may stand still.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the one short look of an idempotent sink may take.
const GLANCE_TIMEOUT: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tails {
    /// Per partition the last offset of this sink and generation.
    pub(crate) stored: BTreeMap<i32, Offset>,
    /// The largest offset of this log, of whatever sink.
    pub(crate) highest: Option<Offset>,
    /// See [`Pin::searched`].
    pub(crate) searched: BTreeMap<i32, i64>,
}

/// A partition that is still being searched.
#[derive(Debug, Clone, Copy)]
struct Search {
    low: i64,
    start: i64,
    end: i64,
}

/// Looks at the last records only, whether committed or not; nothing is known of partitions where others wrote last.
/// Blocking.
pub(crate) fn glance(config: &Config, claim: &Claim, pin: &Pin) -> Result<Tails, ConnectorError> {
    let consumer = consumer(config, "read_uncommitted")?;
    let searches = searches(config, &consumer, pin)?;
    let mut tails = Tails::default();
    look(config, &consumer, claim, &searches, &mut tails, GLANCE_TIMEOUT)?;
    Ok(tails)
}

/// Searches each partition backwards until a record of this sink is found. Blocking. To be called behind the fence.
pub(crate) fn search(config: &Config, claim: &Claim, pin: &Pin) -> Result<Tails, ConnectorError> {
    let committed = consumer(config, "read_committed")?;
    wait_for_open_transactions(config, &committed, pin)?;
    let mut searches = searches(config, &committed, pin)?;
    let ends: BTreeMap<i32, Search> = searches.clone();
    let mut tails = Tails { searched: pin.searched.clone(), ..Tails::default() };
    let mut step = FIRST_LOOK;
    while !searches.is_empty() {
        let found = look(config, &committed, claim, &searches, &mut tails, LOOK_TIMEOUT)?;
        step *= 8;
        searches.retain(|partition, search| {
            let is_over = found.contains(partition) || search.start <= search.low;
            if is_over && ends[partition].end - search.start > LONG_SEARCH {
                remember(&mut tails, *partition, search.end, claim.checkpoint);
            }
            search.start = (search.end - step).max(search.low);
            !is_over
        });
    }
    Ok(tails)
}

/// Remembers the search of a partition without anything of ours above the checkpoint.
fn remember(tails: &mut Tails, partition: i32, end: i64, checkpoint: Offset) {
    let is_behind = tails.stored.get(&partition).is_none_or(|offset| *offset <= checkpoint);
    if is_behind && (tails.searched.len() < REMEMBERED_MAX || tails.searched.contains_key(&partition)) {
        tails.searched.insert(partition, end);
    }
}

fn consumer(config: &Config, isolation: &str) -> Result<BaseConsumer<Context>, ConnectorError> {
    let mut settings = config.client()?;
    settings
        // Never joined: partitions are assigned, nothing is committed.
        .set("group.id", "catalog-bridge")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "20")
        .set("queued.max.messages.kbytes", "16384");
    settings
        .create_with_context(Context::default())
        .map_err(|error| errors::client_error("make a client", &config.endpoint(), &error))
}

fn watermarks(config: &Config, client: &BaseConsumer<Context>, partition: i32) -> Result<(i64, i64), ConnectorError> {
    client
        .fetch_watermarks(&config.topic, partition, QUESTION_TIMEOUT)
        .map_err(|error| errors::client_error("read the ends of the topic", &config.endpoint(), &error))
}

fn searches(
    config: &Config,
    client: &BaseConsumer<Context>,
    pin: &Pin,
) -> Result<BTreeMap<i32, Search>, ConnectorError> {
    let mut searches = BTreeMap::new();
    for partition in 0..pin.partitions {
        let (low, end) = watermarks(config, client, partition)?;
        let low = low.max(pin.searched.get(&partition).copied().unwrap_or(0));
        if low < end {
            searches.insert(partition, Search { low, start: (end - FIRST_LOOK).max(low), end });
        }
    }
    Ok(searches)
}

/// A reader of committed records sees nothing behind an open transaction, so neither would we. Ours are closed by the fence;
/// another producer's ends by itself.
fn wait_for_open_transactions(
    config: &Config,
    committed: &BaseConsumer<Context>,
    pin: &Pin,
) -> Result<(), ConnectorError> {
    let all = consumer(config, "read_uncommitted")?;
    let limit = Instant::now() + LOOK_TIMEOUT;
    for partition in 0..pin.partitions {
        let (_, end) = watermarks(config, &all, partition)?;
        while watermarks(config, committed, partition)?.1 < end {
            if Instant::now() > limit {
                let words =
                    format!("another producer's transaction is open in partition {partition}; waiting for its end");
                return Err(ConnectorError::transient("read the ends of the topic", config.endpoint(), words));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Reads every search from its start to the end; answers in which partitions a record of this sink was.
fn look(
    config: &Config,
    consumer: &BaseConsumer<Context>,
    claim: &Claim,
    searches: &BTreeMap<i32, Search>,
    tails: &mut Tails,
    timeout: Duration,
) -> Result<Vec<i32>, ConnectorError> {
    let failed = |error: &KafkaError| errors::client_error("read the ends of the topic", &config.endpoint(), error);
    let mut list = TopicPartitionList::new();
    for (partition, search) in searches {
        list.add_partition_offset(&config.topic, *partition, Position::Offset(search.start))
            .map_err(|error| failed(&error))?;
    }
    consumer.assign(&list).map_err(|error| failed(&error))?;
    let mut unread: Vec<i32> = searches.keys().copied().collect();
    let mut found = Vec::new();
    let mut moved_at = Instant::now();
    while !unread.is_empty() {
        if moved_at.elapsed() > timeout {
            let words = format!("partitions {unread:?} do not answer");
            return Err(ConnectorError::transient("read the ends of the topic", config.endpoint(), words));
        }
        match consumer.poll(Duration::from_millis(100)) {
            None => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => unread.retain(|other| *other != partition),
            Some(Err(error)) if is_passing(&error) => continue,
            Some(Err(error)) => return Err(failed(&error)),
            Some(Ok(record)) => {
                if let Some(origin) = record.headers().and_then(record::origin)
                    && note(tails, record.partition(), &origin, claim)
                {
                    found.push(record.partition());
                }
            }
        }
        moved_at = Instant::now();
    }
    Ok(found)
}

/// Takes one record in; answers whether it is this sink's, of whatever generation (then no earlier one matters).
fn note(tails: &mut Tails, partition: i32, origin: &Origin, claim: &Claim) -> bool {
    if origin.log_id != claim.log_id {
        return false;
    }
    tails.highest = tails.highest.max(Some(origin.offset));
    if origin.sink.as_ref() != Some(&claim.sink) {
        return false;
    }
    if origin.generation == claim.generation {
        let stored = tails.stored.entry(partition).or_insert(origin.offset);
        *stored = origin.offset.max(*stored);
    }
    true
}

/// Trouble that the client gets over by itself; we neither join the group nor need its coordinator.
fn is_passing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code == Some(Code::GroupAuthorizationFailed)
        || code.is_some_and(|code| errors::verdict(code) == errors::Verdict::Transient)
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{Lease, Ordering, SinkName};
    use uuid::Uuid;

    use super::*;

    fn claim() -> Claim {
        Claim {
            log_id: Uuid::from_u128(1),
            sink: SinkName::parse("platform").expect("a name"),
            generation: 2,
            epoch: 1,
            checkpoint: 10.into(),
            head: 20.into(),
            ordering: Ordering::Entity,
            state: None,
            lease: Lease::unlimited(),
        }
    }

    fn origin(log_id: u128, sink: &str, generation: u64, offset: u64) -> Origin {
        let sink = SinkName::parse(sink).ok();
        Origin { log_id: Uuid::from_u128(log_id), generation, offset: offset.into(), sink }
    }

    #[test]
    fn only_our_log_sink_and_generation_make_a_tail() {
        let mut tails = Tails::default();

        assert!(!note(&mut tails, 0, &origin(9, "platform", 2, 99), &claim()));
        assert!(!note(&mut tails, 0, &origin(1, "other", 2, 15), &claim()));
        assert!(note(&mut tails, 1, &origin(1, "platform", 1, 14), &claim()));
        assert!(note(&mut tails, 2, &origin(1, "platform", 2, 13), &claim()));

        assert_eq!(tails.stored, BTreeMap::from([(2, 13.into())]));
        assert_eq!(tails.highest, Some(15.into()));
    }

    #[test]
    fn a_search_is_remembered_only_where_nothing_above_the_checkpoint_was_found() {
        let mut tails = Tails { stored: BTreeMap::from([(0, 10.into()), (1, 11.into())]), ..Tails::default() };

        for partition in 0..3 {
            remember(&mut tails, partition, 500, 10.into());
        }

        assert_eq!(tails.searched, BTreeMap::from([(0, 500), (2, 500)]));
    }
}
