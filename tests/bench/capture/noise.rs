//! (f) Which parts of entities change in a scripted week on a real Backstage: edits, new and dropped components, moves between
//! teams, files that cannot be fetched for ever other reasons, orphans.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use catalog_bridge_api::EventType;
use catalog_bridge_services::{Backstage, BackstageOptions, Postgres, PostgresOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::Daemon;
use crate::ways::{Captured, Way};

const COMPONENTS: usize = 120;
const TEAMS: usize = 8;
const FILES: usize = 10;
const DAYS: usize = 7;

struct Company {
    random: StdRng,
    components: BTreeMap<String, Value>,
    number: usize,
}

pub(crate) async fn run() -> Result<()> {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let backstage = Backstage::start(&postgres, BackstageOptions::default()).await?;
    let captured = Captured::new(backstage.database_url(), backstage.schema(), &[Way::Generations]).await?;
    let daemon = captured.start(Way::Generations, "").await?.context("a daemon")?;
    let mut company = Company { random: StdRng::seed_from_u64(1), components: BTreeMap::new(), number: 0 };
    for _ in 0..COMPONENTS {
        company.hire();
    }
    company.publish(&backstage).await?;
    let files: Vec<usize> = (0..FILES).collect();
    for file in &files {
        backstage.put_file(&format!("n{file}.yaml"), &in_file(*file, 0)).await?;
    }
    let root = root(&backstage, &files).await?;
    backstage.register_location(&root).await?;
    settle(&backstage).await?;
    let begun = caught_up(&daemon, &backstage).await?;
    for day in 1..=DAYS {
        company.day(&backstage, day).await?;
        eprintln!("day {day}");
    }
    settle(&backstage).await?;
    caught_up(&daemon, &backstage).await?;
    tell(&daemon, begun).await?;
    captured.stop(Way::Generations, Some(daemon)).await
}

impl Company {
    fn hire(&mut self) {
        let name = format!("service-{}", self.number);
        let team = self.random.random_range(0..TEAMS);
        self.number += 1;
        let entity = json!({ "apiVersion": "backstage.io/v1alpha1", "kind": "Component",
            "metadata": { "name": name, "description": "a service", "annotations": { "example.com/build": "1" }, "tags": ["java"] },
            "spec": { "type": "service", "lifecycle": "production", "owner": format!("team-{team}"),
                "dependsOn": [format!("component:default/service-{}", self.number.saturating_sub(5))] } });
        self.components.insert(name, entity);
    }

    fn any(&mut self) -> String {
        let index = self.random.random_range(0..self.components.len());
        self.components.keys().nth(index).expect("there are some").clone()
    }

    async fn publish(&self, backstage: &Backstage) -> Result<()> {
        let group = |team: usize| {
            json!({ "apiVersion": "backstage.io/v1alpha1", "kind": "Group", "metadata": { "name": format!("team-{team}") },
            "spec": { "type": "team", "children": [] } })
        };
        let all: Vec<Value> = self.components.values().cloned().chain((0..TEAMS).map(group)).collect();
        backstage.mutate_full(&all).await
    }

    /// Forty edits, three new components, two that go, three that move to another team, four fetches that fail and heal, one
    /// orphan.
    async fn day(&mut self, backstage: &Backstage, day: usize) -> Result<()> {
        for _ in 0..4 {
            for _ in 0..10 {
                let name = self.any();
                let entity = self.components.get_mut(&name).expect("it is there");
                match self.random.random_range(0..5) {
                    0 => entity["metadata"]["description"] = json!(format!("a service, described on day {day}")),
                    1 => {
                        let build = self.random.random::<u16>().to_string();
                        entity["metadata"]["annotations"]["example.com/build"] = json!(build);
                    }
                    2 => entity["metadata"]["tags"] = json!(["java", format!("day-{day}")]),
                    3 => {
                        let lifecycle = if day.is_multiple_of(2) { "production" } else { "experimental" };
                        entity["spec"]["lifecycle"] = json!(lifecycle);
                    }
                    _ => {
                        let other = self.random.random_range(0..self.number);
                        entity["spec"]["dependsOn"] = json!([format!("component:default/service-{other}")]);
                    }
                }
            }
            self.publish(backstage).await?;
            settle(backstage).await?;
        }
        for _ in 0..3 {
            self.hire();
        }
        for _ in 0..2 {
            let name = self.any();
            self.components.remove(&name);
        }
        for _ in 0..3 {
            let (name, team) = (self.any(), self.random.random_range(0..TEAMS));
            self.components.get_mut(&name).expect("it is there")["spec"]["owner"] = json!(format!("team-{team}"));
        }
        self.publish(backstage).await?;
        settle(backstage).await?;
        for failure in 0..4 {
            let file = (day + failure) % FILES;
            let name = format!("n{file}.yaml");
            match failure {
                0 => backstage.delete_file(&name).await?,
                // Each time another text in the parser's complaint.
                _ => drop(backstage.put_file(&name, &format!("kind: [day {day}, failure {failure}")).await?),
            }
            processed(backstage).await?;
            backstage.put_file(&name, &in_file(file, day)).await?;
            processed(backstage).await?;
        }
        let left: Vec<usize> = (0..FILES).filter(|file| *file != day % FILES).collect();
        root(backstage, &left).await?;
        processed(backstage).await
    }
}

fn in_file(file: usize, day: usize) -> String {
    json!({ "apiVersion": "backstage.io/v1alpha1", "kind": "Component",
        "metadata": { "name": format!("from-file-{file}"), "description": format!("of day {}", day / 3) },
        "spec": { "type": "library", "lifecycle": "production", "owner": format!("team-{}", file % TEAMS) } })
    .to_string()
}

async fn root(backstage: &Backstage, files: &[usize]) -> Result<String> {
    let targets: Vec<String> =
        files.iter().map(|file| backstage.control_url(&format!("/files/n{file}.yaml"))).collect();
    let location = json!({ "apiVersion": "backstage.io/v1alpha1", "kind": "Location", "metadata": { "name": "root" },
        "spec": { "type": "url", "targets": targets } });
    backstage.put_file("root.yaml", &location.to_string()).await
}

/// Everything that was asked for is stitched.
async fn settle(backstage: &Backstage) -> Result<()> {
    backstage.wait_idle().await
}

/// Every entity was processed again, files included.
async fn processed(backstage: &Backstage) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(5)).await;
    settle(backstage).await
}

/// The head, once the log holds as many entities as the catalog.
async fn caught_up(daemon: &Daemon, backstage: &Backstage) -> Result<catalog_bridge_api::Offset> {
    let truth = crate::support::catalog::read_truth(backstage.database_url(), backstage.schema()).await?;
    daemon
        .wait_until("the log holds what the catalog holds", async || {
            Ok(daemon.source("backstage").await?["detail"]["entities"].as_u64() == Some(truth.len() as u64))
        })
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    daemon.head().await
}

async fn tell(daemon: &Daemon, begun: catalog_bridge_api::Offset) -> Result<()> {
    let events = daemon.events(begun).await?;
    let counted = |event_type| events.iter().filter(|event| event.event_type == event_type).count();
    let updates: Vec<_> = events.iter().filter(|event| event.event_type == EventType::Updated).collect();
    let (mut by_paths, mut alone): (BTreeMap<String, usize>, BTreeMap<String, usize>) = Default::default();
    for update in &updates {
        let changed = update.changed.as_ref().context("an update has changes")?;
        let mut tops: Vec<String> = changed.paths.iter().map(|path| top(path)).collect();
        tops.sort();
        tops.dedup();
        // The etag changes with everything.
        tops.retain(|top| top != "metadata.etag");
        for top in &tops {
            *by_paths.entry(top.clone()).or_default() += 1;
        }
        *alone.entry(tops.join(" + ")).or_default() += 1;
    }
    println!(
        "{} events: {} added, {} updated, {} removed\n",
        events.len(),
        counted(EventType::Added),
        updates.len(),
        counted(EventType::Removed)
    );
    let share = |count: usize| format!("{:.0} %", count as f64 * 100.0 / updates.len().max(1) as f64);
    println!("| `updated` events in which this changed | share |\n|---|---|");
    for (path, count) in &by_paths {
        println!("| `{path}` | {} |", share(*count));
    }
    println!("\n| `updated` events in which exactly this changed | share |\n|---|---|");
    for (paths, count) in &alone {
        println!("| {} | {} |", if paths.is_empty() { "`metadata.etag` alone" } else { paths }, share(*count));
    }
    Ok(())
}

/// `spec`, `relations`, `status`; of the metadata the part below it.
fn top(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts.as_slice() {
        ["metadata", part, ..] => format!("metadata.{part}"),
        [part, ..] => (*part).to_owned(),
        [] => String::new(),
    }
}
