use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::fake_store::FakeStore;
use super::harness::{Server, settings};
use crate::store::{RetentionPolicy, Store};

/// A reader as the RFC describes it: bootstrap from `/entities`, follow `/events`, remember `lastEventOffset`.
struct Consumer {
    filter: String,
    state: BTreeMap<String, Value>,
    offset: Option<u64>,
    bootstraps: usize,
}

impl Consumer {
    fn new(filter: &str) -> Self {
        let filter = if filter.is_empty() { String::new() } else { format!("&filter={filter}") };
        Consumer { filter, state: BTreeMap::new(), offset: None, bootstraps: 0 }
    }

    async fn bootstrap(&mut self, server: &Server) {
        self.state.clear();
        self.bootstraps += 1;
        let mut cursor = String::new();
        loop {
            let reply = server.get(&format!("/entities?limit=3{}{cursor}", self.filter)).await;
            if reply.status == 410 {
                self.state.clear();
                cursor.clear();
                continue;
            }
            let page = reply.ok();
            for item in page["items"].as_array().expect("items") {
                let name = item["metadata"]["name"].as_str().expect("a name");
                self.state.insert(format!("component:default/{name}"), item.clone());
            }
            self.offset = page["lastEventOffset"].as_u64();
            let Some(next) = page["pageInfo"]["nextCursor"].as_str() else { return };
            cursor = format!("&cursor={next}");
        }
    }

    /// One step; true when it is at this head.
    async fn step(&mut self, server: &Server, head: u64) -> bool {
        let Some(offset) = self.offset else {
            self.bootstrap(server).await;
            return self.offset >= Some(head);
        };
        let reply = server.get(&format!("/events?offset={offset}&limit=4&wait=0{}", self.filter)).await;
        if reply.status == 410 || reply.status == 409 {
            self.offset = None;
            return false;
        }
        let page = reply.ok();
        for event in page["events"].as_array().expect("events") {
            let entity_ref = event["entityRef"].as_str().expect("a ref").to_owned();
            let is_known = self.state.contains_key(&entity_ref);
            match event["type"].as_str().expect("a type") {
                "removed" => {
                    assert!(is_known, "{event} removes what is not there");
                    self.state.remove(&entity_ref);
                }
                event_type => {
                    assert_eq!(is_known, event_type == "updated", "{event}");
                    self.state.insert(entity_ref, event["entity"].clone());
                }
            }
        }
        self.offset = page["lastEventOffset"].as_u64();
        assert!(self.offset >= Some(offset));
        self.offset >= Some(head)
    }
}

/// Guards P4, with filters and without: whatever is written meanwhile, and whenever a reader stops, resumes or has to begin
/// again, it ends with the live state.
async fn consumers_end_with_the_live_state(store: Arc<dyn Store>, forget: impl AsyncFn(u64), seed: u64) {
    let server = Server::over(store, settings()).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut live: BTreeMap<String, String> = BTreeMap::new();
    let mut consumers = [
        Consumer::new(""),
        Consumer::new("spec.owner=o1"),
        Consumer::new("spec.owner=o0&filter=spec.owner=o2,kind=component"),
    ];
    let mut head = 0;
    for round in 0..120 {
        let name = format!("e{}", random.random_range(0..8));
        if random.random_bool(0.3) {
            head += u64::from(live.remove(&name).is_some());
            server.remove(&name).await;
        } else {
            let owner = format!("o{}", random.random_range(0..4));
            head += u64::from(live.insert(name.clone(), owner.clone()).as_ref() != Some(&owner));
            server.put(&name, &owner).await;
        }
        for consumer in &mut consumers {
            if random.random_bool(0.3) {
                consumer.step(&server, head).await;
            }
        }
        if round % 40 == 39 {
            forget(head.saturating_sub(3)).await;
        }
    }

    // One was away for so long that what it missed is gone.
    let before = consumers[1].bootstraps;
    consumers[1].offset = Some(0);
    consumers[1].step(&server, head).await;
    consumers[1].step(&server, head).await;
    assert_eq!(consumers[1].bootstraps, before + 1);

    for (consumer, owners) in consumers.iter_mut().zip([&["o0", "o1", "o2", "o3"][..], &["o1"], &["o0", "o2"]]) {
        while !consumer.step(&server, head).await {}
        let expected: Vec<(String, &str)> = live
            .iter()
            .filter(|(_, owner)| owners.contains(&owner.as_str()))
            .map(|(name, owner)| (format!("component:default/{name}"), owner.as_str()))
            .collect();
        let seen: Vec<(String, &str)> = consumer
            .state
            .iter()
            .map(|(entity_ref, entity)| (entity_ref.clone(), entity["spec"]["owner"].as_str().unwrap_or_default()))
            .collect();
        assert_eq!(seen, expected, "seed {seed}");
    }
    tokio::time::timeout(Duration::from_secs(30), server.stop()).await.expect("it stops");
}

#[tokio::test]
async fn consumers_end_with_the_live_state_in_memory() {
    for seed in 0..4 {
        let store = Arc::new(FakeStore::new());
        let forgetful = store.clone();
        consumers_end_with_the_live_state(store, async |oldest| forgetful.forget(oldest), seed).await;
    }
}

/// The same over a real store, with its retention.
#[tokio::test]
async fn consumers_end_with_the_live_state_in_sqlite() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = crate::store::Settings::sqlite(directory.path().join("log.db"));
    let store = crate::store::open(&settings, crate::store::Metrics::default()).await.expect("a store");
    let retention = store.clone();
    let policy = RetentionPolicy {
        age: Duration::from_secs(3600),
        bytes: u64::MAX,
        events: Some(3),
        removals: Duration::from_secs(3600),
    };
    let forget = async |_| assert!(retention.retain(&policy).await.expect("a pass").oldest.get() > 0);
    consumers_end_with_the_live_state(store, forget, 77).await;
}
