//! Three nodes: members of the quorum queue die while a window is in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use catalog_bridge_services::{RabbitMq, RabbitMqOptions};

use crate::broker::{bind, build, channel, declare, fresh, section, start, take_all};
use crate::driver::Sink;

const LAST: u64 = 15_000;

/// P5, P6: the node that the sink is connected to is killed, then the queue's leader, then one more: confirms stop, and go on when
/// the two are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_members_of_a_quorum_lose_and_reorder_nothing() -> Result<()> {
    let mut rabbit = start(RabbitMqOptions { nodes: 3, ..Default::default() }).await?;
    let name = fresh("quorum");
    let (_connection, declaring) = channel(&rabbit.address(1)).await?;
    declare(&declaring, &name, &[("x-queue-type", lapin::types::AMQPValue::LongString("quorum".into()))]).await?;
    bind(&declaring, &name, "#").await?;
    // A new quorum queue's name is on disk only minutes later or after a stop.
    rabbit.stop().await?;
    rabbit.start_again().await?;
    let leader = leader(&rabbit, &name).await?;
    let (ours, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let address = rabbit.address(ours);
    let connector = build(section(&address, &name), false)?;
    let sink = Arc::new(Sink::new(LAST, 40));
    let delivering = tokio::spawn({
        let sink = Arc::clone(&sink);
        async move { sink.deliver(&*connector).await }
    });

    reaches(&sink, 1_000).await?;
    rabbit.node(ours).kill9().await?;
    rabbit.node(ours).start_again().await?;
    reaches(&sink, sink.prefix() + 500).await?;
    rabbit.node(leader).kill9().await?;
    // Two of three are a majority.
    reaches(&sink, sink.prefix() + 500).await?;
    rabbit.node(other).kill9().await?;
    let stopped_at = stands_still(&sink).await?;
    ensure!(stopped_at < LAST, "everything was delivered before the majority was gone");
    rabbit.start_again().await?;

    let troubles = delivering.await??;
    sink.check(&take_all(&address, &name).await?, troubles.len() + 1)
}

async fn reaches(sink: &Sink, offset: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(240);
    while sink.prefix() < offset {
        ensure!(Instant::now() < end, "only {} of {offset} were confirmed", sink.prefix());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Waits until nothing more is confirmed.
async fn stands_still(sink: &Sink) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let before = sink.prefix();
        tokio::time::sleep(Duration::from_secs(3)).await;
        if sink.prefix() == before {
            return Ok(before);
        }
        ensure!(Instant::now() < end, "confirms went on without a majority");
    }
}

/// The node that leads the queue, once one does.
async fn leader(rabbit: &RabbitMq, name: &str) -> Result<usize> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let queues = rabbit.control(1, &["list_queues", "name", "leader"]).await?;
        let line = queues.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        let number = ["a@localhost", "b@localhost", "c@localhost"].iter().position(|node| line.contains(node));
        if let Some(number) = number {
            return Ok(number + 1);
        }
        ensure!(Instant::now() < end, "no leader in {queues}");
    }
}
