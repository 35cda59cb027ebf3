//! A stream of three replicas through the loss of its leader (promises P5 and P6).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream;
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{claim, expected, open};
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use catalog_bridge_services::{Nats, NatsOptions};
use serde_json::json;

use crate::server;
use crate::sink::connector;

/// Creates a replicated stream, which a cluster refuses for some seconds after its start.
async fn create(url: &str) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        match server::create_replicated(url, "replicated", 3, stream::Config::default()).await {
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
            Ok(name) => return Ok(name),
        }
    }
}

/// Which server leads the stream; they are named `n1`, `n2`, `n3`.
async fn leader(url: &str, name: &str) -> Result<usize> {
    let stream = server::jetstream(url).await?.get_stream(name).await?;
    let cluster = stream.cached_info().cluster.clone().context("no cluster")?;
    Ok(cluster.leader.context("no leader")?.trim_start_matches('n').parse()?)
}

/// The leader dies inside the window, and the two others go on.
///
/// It is not started again here: nats-server 2.15.2 does not set the last message's id while a replica catches up, so a replica
/// that came back refuses what is chained to it ("last msgid mismatch") and does not become current.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_leaves_no_hole_and_nothing_is_repeated() -> Result<()> {
    const LAST: u64 = 15_000;
    let mut nats = Nats::start(NatsOptions { nodes: 3, ..NatsOptions::default() }).await?;
    let url = nats.url();
    let name = create(&url).await?;
    let connector = connector(&url, &name, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, LAST / 3, 500).await;
    let leading = leader(&url, &name).await?;
    nats.node(leading).kill9().await?;
    running.offer(LAST / 3 + 1, LAST, 500).await;
    let (mut failures, mut state) = (0, None);
    while running.acknowledged_to(LAST).await.is_err() {
        let error = &running.error;
        ensure!(matches!(error, Some(ConnectorError::Transient { .. })), "the session ended by {error:?}");
        failures += 1;
        let checkpoint = running.prefix();
        state = running.state.clone().or(state);
        running = open(&*connector, claim(checkpoint, state.clone())).await?;
        running.offer(checkpoint + 1, LAST, 500).await;
    }
    running.finish().await?;

    ensure!(failures > 0, "no session noticed anything");
    let records = server::read(&url, &name).await?;
    let rules = DeliveryRules { lane: Lane::Stream, repeated_per_session_max: 0, sessions_max: 0 };
    check_delivery(&expected(LAST), &server::delivered(&records), rules)
}
