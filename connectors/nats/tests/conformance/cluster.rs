//! A stream of three replicas through the loss of its leader (promises P5 and P6).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream;
use catalog_bridge_api::{Connector, ConnectorError};
use catalog_bridge_conformance::by_hand::{Running, claim, expected, open};
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

/// Waits until every replica holds what the leader holds.
async fn wait_until_current(url: &str, name: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let stream = server::jetstream(url).await?.get_stream(name).await;
        let cluster = stream.ok().and_then(|stream| stream.cached_info().cluster.clone());
        let replicas = cluster.map(|cluster| cluster.replicas).unwrap_or_default();
        if replicas.len() == 2 && replicas.iter().all(|replica| replica.current && !replica.offline) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "a replica stays behind: {replicas:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The leader dies inside the window and comes back while the others go on: it catches up, and the next one can die.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_leaves_no_hole_and_comes_back() -> Result<()> {
    const LAST: u64 = 20_000;
    const KILLED: u64 = 5_000;
    const BACK: u64 = 15_000;
    let mut nats = Nats::start(NatsOptions { nodes: 3, ..NatsOptions::default() }).await?;
    let url = nats.url();
    let name = create(&url).await?;
    let connector = connector(&url, &name, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, KILLED, 500).await;
    let leading = leader(&url, &name).await?;
    nats.node(leading).kill9().await?;
    running.offer(KILLED + 1, BACK, 500).await;
    let (mut running, failures) = resume_until(&*connector, running, BACK).await?;
    ensure!(failures > 0, "no session noticed anything");
    running.offer(BACK + 1, LAST, 500).await;
    let (back, delivered) = tokio::join!(nats.node(leading).start_again(), resume_until(&*connector, running, LAST));
    back?;
    delivered?.0.finish().await?;
    wait_until_current(&url, &name).await?;

    let records = server::read(&url, &name).await?;
    let rules = DeliveryRules { lane: Lane::Stream, repeated_per_session_max: 0, sessions_max: 0 };
    check_delivery(&expected(LAST), &server::delivered(&records), rules)
}

/// Delivers what was offered up to `last`, through as many sessions as that takes; also tells how many ended.
async fn resume_until(connector: &dyn Connector, mut running: Running, last: u64) -> Result<(Running, usize)> {
    let (mut failures, mut state) = (0, None);
    while running.acknowledged_to(last).await.is_err() {
        let error = &running.error;
        ensure!(matches!(error, Some(ConnectorError::Transient { .. })), "the session ended by {error:?}");
        failures += 1;
        let checkpoint = running.prefix();
        state = running.state.clone().or(state);
        running = loop {
            match open(connector, claim(checkpoint, state.clone())).await {
                Ok(running) => break running,
                Err(error) => ensure!(matches!(error, ConnectorError::Transient { .. }) && failures < 100, "{error}"),
            }
            failures += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        running.offer(checkpoint + 1, last, 500).await;
    }
    Ok((running, failures))
}
