//! What a real Backstage does to its tables, change by change, on the oldest and the newest release that is supported: each
//! driven change gives exactly the events it should, by every way of capture.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{EntityRef, EventType, Offset};
use catalog_bridge_services::{BackstageOptions, BackstageVersion, Division, OrphanStrategy};
use serde_json::{Value, json};

use crate::support::{component, rounds};
use crate::watched::Watched;

const A: &str = "component:default/a";
const CHILDREN: [&str; 3] = ["c1", "c2", "c3"];

fn group(name: &str) -> Value {
    json!({ "apiVersion": "backstage.io/v1alpha1", "kind": "Group", "metadata": { "name": name },
        "spec": { "type": "team", "children": [] } })
}

fn owned_by(name: &str, owner: &str) -> Value {
    let mut entity = component(name, 1);
    entity["spec"]["owner"] = json!(owner);
    entity
}

fn reference(name: &str) -> String {
    format!("component:default/{name}")
}

/// An entity's ref, which is in the truth by its parsed form.
fn at(name: &str) -> EntityRef {
    EntityRef::parse(name).expect("a ref")
}

/// The new release, a database for each plugin; orphans are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn each_change_gives_its_events_on_the_new_release() -> Result<()> {
    let mut watched = Watched::start(BackstageOptions::default(), &["generations", "reconcile", "triggers"]).await?;
    by_providers(&watched).await?;
    by_locations(&watched, OrphanStrategy::Delete).await?;
    by_full_mutations(&watched).await?;
    after_a_restart(&mut watched).await?;
    watched.check_logs().await
}

/// The old release, a schema for each plugin; orphans are kept.
#[tokio::test(flavor = "multi_thread")]
async fn each_change_gives_its_events_on_the_old_release() -> Result<()> {
    let options = BackstageOptions {
        version: BackstageVersion::Old,
        division: Division::Schema,
        orphan_strategy: OrphanStrategy::Keep,
        ..Default::default()
    };
    let mut watched = Watched::start(options, &["reconcile", "triggers"]).await?;
    by_providers(&watched).await?;
    by_locations(&watched, OrphanStrategy::Keep).await?;
    by_full_mutations(&watched).await?;
    after_a_restart(&mut watched).await?;
    watched.check_logs().await
}

async fn by_providers(watched: &Watched) -> Result<()> {
    let backstage = &watched.backstage;
    let put = async |entity: Value| backstage.mutate_delta(&[entity], &[]).await;
    watched.step("one is added", async || put(component("a", 1)).await, &[(A, "added")]).await?;
    watched.step("it changes", async || put(component("a", 4)).await, &[(A, "updated")]).await?;
    let same = async || {
        put(component("a", 4)).await?;
        let (status, _) =
            backstage.request(reqwest::Method::POST, "/api/catalog/refresh", Some(&json!({ "entityRef": A }))).await?;
        ensure!(status.is_success(), "refresh: {status}");
        Ok(())
    };
    watched.step_of_nothing("the same again, and a refresh", same).await?;
    watched.step("it is removed", async || backstage.mutate_delta(&[], &[A]).await, &[(A, "removed")]).await?;
    watched.step("the same is added again", async || put(component("a", 4)).await, &[(A, "added")]).await?;
    watched.step("its name changes to upper case", async || put(component("A", 4)).await, &[(A, "updated")]).await?;

    let other = async |kind: &str, entities: &[Value], key: &str| {
        let mutation = json!({ "type": kind, "provider": "other", "added": entities, "locationKey": key });
        backstage.mutate(&mutation).await
    };
    let conflict = async || other("delta", &[component("a", 9)], "harness-other").await;
    watched.step_of_nothing("a second provider gives the same ref", conflict).await?;
    let k = reference("k");
    watched.step("another", async || other("full", &[component("k", 1)], "one").await, &[(&k, "added")]).await?;
    let moved = async || {
        let uid = watched.truth().await?[&at(&k)]["metadata"]["uid"].clone();
        other("full", &[component("k", 1)], "two").await?;
        watched
            .wait_for("k is back", |truth| truth.get(&at(&k)).is_some_and(|entity| entity["metadata"]["uid"] != uid))
            .await
    };
    watched.step("its locationKey changes", moved, &[(&k, "removed added")]).await?;

    let names: Vec<String> = (0..5).map(|number| reference(&format!("m{number}"))).collect();
    let team = async || {
        let mut all: Vec<Value> = (0..5).map(|number| owned_by(&format!("m{number}"), "squad")).collect();
        all.push(group("squad"));
        backstage.mutate_delta(&all, &[]).await
    };
    let mut expected: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "added")).collect();
    expected.push(("group:default/squad", "added updated*"));
    watched.step("five components and their group", team, &expected).await?;
    let gone: Vec<&str> = names[..3].iter().map(String::as_str).collect();
    let mut expected: Vec<(&str, &str)> = gone.iter().map(|name| (*name, "removed")).collect();
    expected.push(("group:default/squad", "updated"));
    watched.step("three of the five go", async || backstage.mutate_delta(&[], &gone).await, &expected).await?;

    let mut dangling = component("d", 1);
    dangling["spec"]["dependsOn"] = json!([reference("absent")]);
    let (d, absent) = (reference("d"), reference("absent"));
    watched.step("a relation whose target is absent", async || put(dangling.clone()).await, &[(&d, "added")]).await?;
    watched
        .step("the target appears", async || put(component("absent", 1)).await, &[(&absent, "added updated*")])
        .await?;
    let goes = async || backstage.mutate_delta(&[], &[&absent]).await;
    watched.step("the target goes", goes, &[(&absent, "removed")]).await
}

fn yaml(entity: &Value) -> String {
    // JSON is YAML.
    entity.to_string()
}

async fn by_locations(watched: &Watched, orphans: OrphanStrategy) -> Result<()> {
    const ROOT: &str = "location:default/root";
    let backstage = &watched.backstage;
    let put = async |name: &str, version: u64| {
        backstage.put_file(&format!("{name}.yaml"), &yaml(&component(name, version))).await
    };
    let root = async |children: &[&str]| {
        let targets: Vec<String> =
            children.iter().map(|name| backstage.control_url(&format!("/files/{name}.yaml"))).collect();
        let location = json!({ "apiVersion": "backstage.io/v1alpha1", "kind": "Location", "metadata": { "name": "root" },
            "spec": { "type": "url", "targets": targets } });
        backstage.put_file("root.yaml", &yaml(&location)).await
    };
    let complains = |is_so: bool| {
        move |truth: &catalog_bridge_history::Truth| {
            let items = truth.get(&at(ROOT)).and_then(|root| root["status"]["items"].as_array().map(Vec::len));
            (items.unwrap_or(0) > 0) == is_so
        }
    };
    let [c1, c2, c3] = CHILDREN.map(reference);
    let version = |name: &str, version: &str| {
        let (name, version) = (at(name), version.to_owned());
        move |truth: &catalog_bridge_history::Truth| {
            truth.get(&name).is_some_and(|entity| entity["metadata"]["annotations"]["example.com/version"] == version)
        }
    };

    let mut target = String::new();
    let register = async || {
        for name in CHILDREN {
            put(name, 1).await?;
        }
        target = root(&CHILDREN).await?;
        backstage.register_location(&target).await?;
        watched
            .wait_for("all are there", |truth| [&c1, &c2, &c3].iter().all(|name| truth.contains_key(&at(name))))
            .await
    };
    let added =
        [("location:default/generated", "added"), (ROOT, "added"), (&c1, "added"), (&c2, "added"), (&c3, "added")];
    watched.step("a location with three components", register, &added).await?;

    let change = async || {
        put("c1", 2).await?;
        watched.wait_for("c1 is new", version(&c1, "2")).await
    };
    watched.step("a child's file changes", change, &[(&c1, "updated")]).await?;
    for (what, is_missing) in [("a child's file is broken", false), ("a child's file is not found", true)] {
        let harm = async || {
            match is_missing {
                true => backstage.delete_file("c1.yaml").await?,
                false => drop(backstage.put_file("c1.yaml", "kind: [").await?),
            }
            put("c2", 2 + u64::from(is_missing)).await?;
            watched.wait_for("the parent complains", complains(true)).await
        };
        watched.step(what, harm, &[(ROOT, "updated"), (&c2, "updated*")]).await?;
        let heal = async || {
            put("c1", 2).await?;
            watched.wait_for("the parent is content", complains(false)).await?;
            watched.wait_for("c2 is new", version(&c2, if is_missing { "3" } else { "2" })).await
        };
        watched.step("it is healthy again", heal, &[(ROOT, "updated"), (&c2, "updated*")]).await?;
    }

    let drop_child = async || {
        root(&CHILDREN[..2]).await?;
        let is_orphan = |truth: &catalog_bridge_history::Truth| match (orphans, truth.get(&at(&c3))) {
            (OrphanStrategy::Delete, entity) => entity.is_none(),
            (OrphanStrategy::Keep, entity) => {
                entity.is_some_and(|entity| entity["metadata"]["annotations"]["backstage.io/orphan"] == "true")
            }
        };
        watched.wait_for("c3 is an orphan", is_orphan).await
    };
    let orphaned = if orphans == OrphanStrategy::Delete { "updated removed" } else { "updated" };
    watched.step("a child is dropped from its parent", drop_child, &[(ROOT, "updated"), (&c3, orphaned)]).await?;
    if orphans == OrphanStrategy::Keep {
        let again = async || {
            root(&CHILDREN).await?;
            let is_orphan = |entity: &Value| !entity["metadata"]["annotations"]["backstage.io/orphan"].is_null();
            watched
                .wait_for("c3 is no orphan", |truth| truth.get(&at(&c3)).is_some_and(|entity| !is_orphan(entity)))
                .await
        };
        watched.step("the child is back", again, &[(ROOT, "updated"), (&c3, "updated")]).await?;
    }

    let delete = async || {
        let uid = watched.truth().await?[&at(&c2)]["metadata"]["uid"].clone();
        let path = format!("/api/catalog/entities/by-uid/{}", uid.as_str().context("a uid")?);
        let (status, _) = backstage.request(reqwest::Method::DELETE, &path, None).await?;
        ensure!(status.is_success(), "deleting c2: {status}");
        watched
            .wait_for("c2 is back", |truth| truth.get(&at(&c2)).is_some_and(|entity| entity["metadata"]["uid"] != uid))
            .await
    };
    watched.step("a child is deleted that its parent still emits", delete, &[(&c2, "removed added")]).await?;

    let mut gone =
        vec![("location:default/generated", "removed"), (ROOT, "removed"), (&*c1, "removed"), (&c2, "removed")];
    if orphans == OrphanStrategy::Keep {
        gone.push((&c3, "removed"));
    }
    watched.step("the location is unregistered", async || backstage.delete_location(&target).await, &gone).await
}

async fn by_full_mutations(watched: &Watched) -> Result<()> {
    const COUNT: u64 = 50;
    let full = async |versions: &dyn Fn(u64) -> u64, count: u64| {
        let mut all: Vec<Value> = (0..count).map(|number| component(&format!("f{number}"), versions(number))).collect();
        if count > 0 {
            all.push(component("k", 1));
        }
        let mutation = json!({ "type": "full", "provider": "other", "added": all, "locationKey": "two" });
        watched.backstage.mutate(&mutation).await
    };
    let names: Vec<String> = (0..COUNT).map(|number| reference(&format!("f{number}"))).collect();
    let all = |word: &'static str, count: usize| names[..count].iter().map(move |name| (name.as_str(), word));
    let new: Vec<(&str, &str)> = all("added", 50).collect();
    watched.step("fifty new in a full mutation", async || full(&|_| 1, COUNT).await, &new).await?;
    let some: Vec<(&str, &str)> = all("updated", 10).collect();
    let changed = |number: u64| if number < 10 { 2 } else { 1 };
    watched.step("ten of them changed", async || full(&changed, COUNT).await, &some).await?;
    watched.step_of_nothing("an identical full mutation", async || full(&changed, COUNT).await).await?;
    let k = reference("k");
    let gone: Vec<(&str, &str)> = all("removed", 50).chain([(k.as_str(), "removed")]).collect();
    watched.step("an empty full mutation", async || full(&changed, 0).await, &gone).await
}

async fn after_a_restart(watched: &mut Watched) -> Result<()> {
    let mut before = Vec::new();
    for watcher in &watched.watchers {
        before.push(watcher.daemon.head().await?);
    }
    watched.backstage.server().stop().await?;
    watched.backstage.start_again().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    watched.settle("a restart of the backend").await?;
    for (watcher, before) in watched.watchers.iter().zip(before) {
        let events = watcher.daemon.events(before).await?;
        ensure!(events.is_empty(), "a restart of the backend, by {}: {events:?}", watcher.way);
    }
    Ok(())
}

/// A location that brings everything there is, and takes it away: the guard holds the removals until a person confirms them.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_come_and_go_by_one_location() -> Result<()> {
    let count = rounds(1_000, 10_000);
    let options = BackstageOptions { processing_seconds: 600, ..Default::default() };
    let watched = Watched::start(options, &["generations", "reconcile", "triggers"]).await?;
    let entities: Vec<String> = (0..count).map(|number| yaml(&component(&format!("t{number}"), 1))).collect();
    let target = watched.backstage.put_file("many.yaml", &entities.join("\n---\n")).await?;

    watched.backstage.register_location(&target).await?;
    // In stages: each wait has its limit, and Backstage needs a while for all of them.
    for stage in 1..=10 {
        let wanted = count * stage / 10;
        watched.wait_for(&format!("{wanted} entities"), |truth| truth.len() > wanted).await?;
    }
    let all = watched.settle("the import").await?.len();
    ensure!(all == count + 1, "{all} entities: the components and their location");
    watched.backstage.delete_location(&target).await?;

    for watcher in &watched.watchers {
        let held = json!({ "state": "removals-held", "count": all });
        watcher
            .daemon
            .wait_until("the removals are held", async || {
                let source = watcher.source().await?;
                Ok(source["state"] == held["state"] && source["count"] == held["count"])
            })
            .await
            .with_context(|| watcher.way)?;
        let origin = watcher.source().await?["detail"]["heldRemovals"]["byOrigin"][&format!("url:{target}")].clone();
        ensure!(origin["count"].as_u64().is_some_and(|count| count > 0), "by {}: {origin}", watcher.way);
        watcher.confirm()?;
    }
    watched.settle("the removal").await?;
    for watcher in &watched.watchers {
        let events = watcher.daemon.events(Offset::ZERO).await?;
        let counted = |event_type| events.iter().filter(|event| event.event_type == event_type).count();
        let told = (counted(EventType::Added), counted(EventType::Removed));
        ensure!(told == (all, all), "by {}: {told:?} of {all}", watcher.way);
    }
    watched.check_logs().await
}
