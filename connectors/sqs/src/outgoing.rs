//! Decides what goes into the next request, and when. Pure: time and chance are passed in.
//!
//! Invariants: a request has at most ten entries and the bytes that the service takes; a failed entry goes again after a
//! backoff, with others or, when a whole request was refused for one of its entries, alone; the more a service is congested,
//! the fewer requests are under way. Groups are no matter here: the driver offers one message of each at a time.

use std::collections::VecDeque;
use std::time::Duration;

use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use catalog_bridge_api::{EntityRef, Offset};
use tokio::time::Instant;

/// The service's limit.
pub(crate) const ENTRIES_MAX: usize = 10;
/// Requests under way at once: with 10 ms to the service, more gain little (MEASURED section 4).
pub(crate) const REQUESTS_MAX: usize = 32;
/// How often an entry is sent before the session ends, so that the driver tells of the trouble.
const ATTEMPTS_MAX: u32 = 5;
/// The first pause; each later one is twice as long.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long an entry waits for others while requests are under way, whose answers bring the next ones.
const LINGER: Duration = Duration::from_millis(3);

/// A message that is not stored yet.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) entry: SendMessageBatchRequestEntry,
    pub(crate) bytes: usize,
    pub(crate) offset: Offset,
    pub(crate) entity_ref: EntityRef,
    attempts: u32,
    is_alone: bool,
}

impl Item {
    pub(crate) fn new(
        entry: SendMessageBatchRequestEntry,
        bytes: usize,
        offset: Offset,
        entity_ref: EntityRef,
    ) -> Self {
        Item { entry, bytes, offset, entity_ref, attempts: 0, is_alone: false }
    }
}

/// What waits to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes_max: usize,
    fresh: VecDeque<Item>,
    /// When the oldest of `fresh` came.
    fresh_since: Option<Instant>,
    retries: Vec<(Instant, Item)>,
    requests_max: usize,
}

impl Outgoing {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Outgoing {
            bytes_max,
            fresh: VecDeque::new(),
            fresh_since: None,
            retries: Vec::new(),
            requests_max: REQUESTS_MAX,
        }
    }

    /// Whether another message may come in; what does not fit waits in the feed.
    pub(crate) fn has_room(&self) -> bool {
        self.fresh.len() < ENTRIES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.retries.is_empty()
    }

    pub(crate) fn push(&mut self, item: Item, now: Instant) {
        self.fresh_since.get_or_insert(now);
        self.fresh.push_back(item);
    }

    /// The next request, if one may and should go now.
    pub(crate) fn next_request(&mut self, now: Instant, under_way: usize) -> Option<Vec<Item>> {
        if under_way >= self.requests_max {
            return None;
        }
        let mut request = Request { items: Vec::new(), bytes_left: self.bytes_max };
        let mut index = 0;
        while let Some((due, item)) = self.retries.get(index) {
            if *due <= now && request.takes(item) {
                request.push(self.retries.swap_remove(index).1);
            } else {
                index += 1;
            }
        }
        let has_lingered = self.linger_end().is_some_and(|end| end <= now);
        if under_way == 0 || !self.has_room() || has_lingered || !request.items.is_empty() {
            while let Some(item) = self.fresh.pop_front_if(|item| request.takes(item)) {
                request.push(item);
            }
        }
        if self.fresh.is_empty() {
            self.fresh_since = None;
        }
        (!request.items.is_empty()).then_some(request.items)
    }

    /// When to ask again though nothing else happened.
    pub(crate) fn wakes_at(&self, under_way: usize) -> Option<Instant> {
        if under_way >= self.requests_max {
            return None;
        }
        self.retries.iter().map(|(due, _)| *due).chain(self.linger_end()).min()
    }

    fn linger_end(&self) -> Option<Instant> {
        self.fresh_since.map(|since| since + LINGER)
    }

    /// A request went through.
    pub(crate) fn succeeded(&mut self) {
        self.requests_max = (self.requests_max + 1).min(REQUESTS_MAX);
    }

    /// The service asked for less.
    pub(crate) fn congested(&mut self) {
        self.requests_max = (self.requests_max / 2).max(1);
    }

    /// Sends it again after a backoff; given back when that was done often enough. `chance` is in 0..1.
    pub(crate) fn retry(&mut self, mut item: Item, now: Instant, chance: f64) -> Result<(), Box<Item>> {
        item.attempts += 1;
        if item.attempts >= ATTEMPTS_MAX {
            return Err(Box::new(item));
        }
        let most = BACKOFF * 2_u32.pow(item.attempts - 1);
        self.retries.push((now + most / 2 + (most / 2).mul_f64(chance), item));
        Ok(())
    }

    /// The request was refused as a whole: whoever is to blame will be refused again, alone.
    pub(crate) fn separate(&mut self, items: Vec<Item>, now: Instant) {
        self.retries.extend(items.into_iter().map(|item| (now, Item { is_alone: true, ..item })));
    }
}

struct Request {
    items: Vec<Item>,
    bytes_left: usize,
}

impl Request {
    fn takes(&self, item: &Item) -> bool {
        let Some(first) = self.items.first() else { return true };
        !item.is_alone && !first.is_alone && self.items.len() < ENTRIES_MAX && item.bytes <= self.bytes_left
    }

    fn push(&mut self, item: Item) {
        self.bytes_left = self.bytes_left.saturating_sub(item.bytes);
        self.items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u64; 0] = [];

    fn item(offset: u64, bytes: usize) -> Item {
        let entry = SendMessageBatchRequestEntry::builder().id(offset.to_string()).message_body("{}").build();
        let entity_ref = EntityRef::parse(&format!("component:default/e{offset}")).expect("a ref");
        Item::new(entry.expect("complete"), bytes, offset.into(), entity_ref)
    }

    fn outgoing(bytes: &[usize], now: Instant) -> Outgoing {
        let mut outgoing = Outgoing::new(100);
        (1..).zip(bytes).for_each(|(offset, bytes)| outgoing.push(item(offset, *bytes), now));
        outgoing
    }

    fn offsets(request: Option<Vec<Item>>) -> Vec<u64> {
        request.unwrap_or_default().iter().map(|item| item.offset.get()).collect()
    }

    #[test]
    fn a_request_holds_no_more_than_the_service_takes() {
        let now = Instant::now();
        let mut many = outgoing(&[1; 12], now);
        assert_eq!(offsets(many.next_request(now, 0)).len(), 10);
        assert_eq!(offsets(many.next_request(now, 0)), [11, 12]);

        let mut large = outgoing(&[60, 40, 1, 100], now);
        let requests: Vec<_> = (0..4).map(|_| offsets(large.next_request(now, 0))).collect();
        assert_eq!(requests, [vec![1, 2], vec![3], vec![4], vec![]]);
    }

    #[test]
    fn few_entries_wait_a_moment_while_answers_are_awaited() {
        let now = Instant::now();
        let mut outgoing = outgoing(&[1, 1], now);
        assert_eq!(offsets(outgoing.next_request(now, 1)), NONE);
        assert_eq!(outgoing.wakes_at(1), Some(now + LINGER));
        assert_eq!(offsets(outgoing.next_request(now + LINGER, 1)), [1, 2]);
        assert_eq!(outgoing.wakes_at(1), None);
    }

    #[test]
    fn a_failed_entry_goes_again_after_growing_pauses_and_then_no_more() {
        let mut now = Instant::now();
        let mut outgoing = outgoing(&[1], now);
        let mut pauses = Vec::new();
        loop {
            let failed = outgoing.next_request(now, 0).expect("due").remove(0);
            let Ok(()) = outgoing.retry(failed, now, 1.0) else { break };
            assert_eq!(offsets(outgoing.next_request(now, 0)), NONE);
            let due = outgoing.wakes_at(0).expect("it goes again");
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [100, 200, 400, 800]);
    }

    #[test]
    fn entries_of_a_refused_request_go_each_alone_beside_others() {
        let now = Instant::now();
        let mut outgoing = outgoing(&[1; 3], now);
        let refused = outgoing.next_request(now, 0).expect("due");
        outgoing.separate(refused, now);
        outgoing.push(item(4, 1), now);

        let mut requests: Vec<_> = (0..4).map(|_| offsets(outgoing.next_request(now, 0))).collect();

        requests.sort();
        assert_eq!(requests, [[1], [2], [3], [4]]);
    }

    #[test]
    fn congestion_halves_what_is_under_way_and_success_brings_it_back() {
        let now = Instant::now();
        let mut outgoing = outgoing(&[1; 10], now);
        outgoing.congested();
        assert_eq!(offsets(outgoing.next_request(now, 16)), NONE);
        assert_eq!(outgoing.wakes_at(16), None);
        outgoing.succeeded();
        assert_eq!(offsets(outgoing.next_request(now, 16)).len(), 10);
        (0..100).for_each(|_| outgoing.congested());
        assert_eq!(outgoing.requests_max, 1);
    }
}
