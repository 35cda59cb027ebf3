//! Measures the event log and delivery: events per second appended, read and delivered, on SQLite and, where an address is given, on PostgreSQL.
//!
//! `cargo run --release -p catalog-bridge-bench -- [postgres://…/an_empty_database] [entities]`. The figures depend on the
//! machine and its disk: compare only with another run on the same one.

mod delivery;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use catalog_bridge::store::{Append, Change, Metrics, OnOwned, ReadLimits, Settings, Store, Upsert, open};
use catalog_bridge_api::{Cause, EntityRef, JsonText, Offset, SourceName};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let entities = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(20_000);
    let directory = tempfile::tempdir()?;
    if let Change::Upsert(upsert) = upsert(1, 1) {
        println!("messages");
        delivery::encode(&upsert.entity)?;
    }
    measure("SQLite", Settings::sqlite(directory.path().join("log.db")), entities).await?;
    if let Some(url) = arguments.iter().find(|argument| argument.starts_with("postgres")) {
        measure("PostgreSQL", Settings::postgres(url), entities).await?;
    }
    Ok(())
}

async fn measure(name: &str, settings: Settings, entities: usize) -> Result<()> {
    let log = open(&settings, Metrics::default()).await?;
    println!("{name}, {entities} entities of 2 KiB");
    for (batch, version) in [(1_000, 0), (1_000, 1), (100, 2)] {
        let started = Instant::now();
        for from in (0..entities).step_by(batch) {
            let to = (from + batch).min(entities);
            append(&log, "bench", (from..to).map(|number| upsert(number, version)).collect()).await?;
        }
        let what = if version == 0 { "added" } else { "updated" };
        report(&format!("{what}, {batch} a batch"), entities, started.elapsed());
    }
    let started = Instant::now();
    for from in (0..entities).step_by(1_000) {
        append(&log, "bench", (from..(from + 1_000).min(entities)).map(|number| upsert(number, 2)).collect()).await?;
    }
    report("unchanged, 1000 a batch", entities, started.elapsed());
    singles(&log, 1, 500).await?;
    singles(&log, 16, 2_000).await?;
    read(&log).await?;
    delivery::to_file(&log).await?;
    bootstrap(&log).await
}

/// Appends of one change each by several writers at once.
async fn singles(log: &Arc<dyn Store>, writers: usize, count: usize) -> Result<()> {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let log = Arc::clone(log);
        tasks.spawn(async move {
            for number in 0..count / writers {
                let number = 1_000_000 + writer * 10_000 + number;
                append(&log, "singles", vec![upsert(number, writers as u32)]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    report(&format!("one a commit, {writers} writers"), count, started.elapsed());
    Ok(())
}

async fn read(log: &Arc<dyn Store>) -> Result<()> {
    let (started, mut count, mut after) = (Instant::now(), 0, Offset::ZERO);
    loop {
        let page = log.read(after, ReadLimits { events_max: 1_000, bytes_max: 4 * 1024 * 1024 }).await?;
        let Some(last) = page.entries.last() else { break };
        count += page.entries.len();
        after = last.event.offset;
    }
    report("read with the bodies before", count, started.elapsed());
    Ok(())
}

async fn bootstrap(log: &Arc<dyn Store>) -> Result<()> {
    let limits = ReadLimits { events_max: 1_000, bytes_max: 4 * 1024 * 1024 };
    let head = log.state().await?.head;
    let (started, mut count, mut last) = (Instant::now(), 0, None::<EntityRef>);
    loop {
        let page = log.state_at(head, last.as_ref(), limits).await?;
        count += page.entries.len();
        last = page.entries.last().map(|entry| entry.event.entity_ref.clone());
        if !page.more {
            break;
        }
    }
    report("state at head", count, started.elapsed());
    let (started, mut count, mut after) = (Instant::now(), 0, Offset::ZERO);
    loop {
        let page = log.walk(head, after, None, limits).await?;
        count += page.entries.len();
        after = page.entries.last().map_or(after, |entry| entry.event.offset);
        if !page.more {
            break;
        }
    }
    report("walk at head", count, started.elapsed());
    Ok(())
}

fn report(what: &str, count: usize, took: Duration) {
    let rate = count as f64 / took.as_secs_f64();
    let each = took.as_secs_f64() * 1e6 / count as f64;
    println!("  {what:<30} {count:>8} in {:>7.2} s  {rate:>9.0}/s  {each:>8.1} µs each", took.as_secs_f64());
}

async fn append(log: &Arc<dyn Store>, source: &str, changes: Vec<Change>) -> Result<()> {
    let append = Append {
        source: SourceName::parse(source)?,
        changes,
        position: None,
        idempotency: None,
        rejected: Vec::new(),
        on_owned: OnOwned::RefuseAll,
    };
    log.append(append).await.map(drop).context("append")
}

/// A component of about 2 KiB, with keys in the order in which Backstage writes them.
fn upsert(number: usize, version: u32) -> Change {
    let annotations: Vec<String> = (0..12)
        .map(|key| format!(r#""example.com/annotation-{key}":"some value of annotation {key} of {number}""#))
        .collect();
    let relations: Vec<String> = (0..6)
        .map(|key| format!(r#"{{"type":"dependsOn","targetRef":"component:default/service-{}"}}"#, number + key))
        .collect();
    let text = format!(
        r#"{{"apiVersion":"backstage.io/v1alpha1","kind":"Component","metadata":{{"namespace":"default","name":"service-{number}","uid":"uid-{number}","annotations":{{{}}},"description":"{}","tags":["java","web"]}},"spec":{{"type":"service","lifecycle":"production","owner":"team-{}","version":"{version}"}},"relations":[{}]}}"#,
        annotations.join(","),
        "a description that says what this is ".repeat(10),
        number % 50,
        relations.join(","),
    );
    Change::Upsert(Upsert {
        entity_ref: EntityRef::from_parts("component", "default", &format!("service-{number}")).expect("a ref"),
        uid: Some(format!("uid-{number}")),
        entity: JsonText::from_trusted(text),
        source_version: Some(format!("{number}-{version}")),
        source_position: Some(i64::from(version)),
        occurred_at: None,
        cause: Cause::Capture,
    })
}
