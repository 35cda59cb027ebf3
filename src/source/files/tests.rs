//! Files that come, change, break, heal and go.

use std::collections::BTreeMap;
use std::path::Path;

use crate::source::SourceKind;
use crate::source::files::Settings;
use crate::source::testing::{Bridge, Log, check_well_formed};
use crate::telemetry::ConsumerState;

fn start(directory: &Path, log: &Log) -> Bridge {
    Bridge::start(SourceKind::Files(Settings::new(directory)), log)
}

fn entity(name: &str, owner: &str) -> String {
    format!("kind: Component\nmetadata:\n  name: {name}\nspec:\n  owner: {owner}\n")
}

fn put(directory: &Path, file: &str, documents: &[(&str, &str)]) {
    let text: Vec<String> = documents.iter().map(|(name, owner)| entity(name, owner)).collect();
    std::fs::write(directory.join(file), text.join("---\n")).expect("written");
}

async fn wait_for(bridge: &Bridge, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(name, owner)| {
            let json = serde_json::json!({"kind": "Component", "metadata": {"name": name}, "spec": {"owner": owner}});
            (format!("component:default/{name}"), json.to_string())
        })
        .collect();
    bridge.wait_for_log(async || expected.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_follows_the_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let log = Log::sqlite().await;
    put(directory, "a.yaml", &[("a", "x"), ("b", "x")]);
    let bridge = start(directory, &log);
    wait_for(&bridge, &[("a", "x"), ("b", "x")]).await;

    put(directory, "a.yaml", &[("a", "y"), ("c", "x")]);
    wait_for(&bridge, &[("a", "y"), ("c", "x")]).await;
    put(directory, "sub.yml", &[("d", "x")]);
    wait_for(&bridge, &[("a", "y"), ("c", "x"), ("d", "x")]).await;
    std::fs::remove_file(directory.join("a.yaml")).expect("removed");
    wait_for(&bridge, &[("d", "x")]).await;

    bridge.stop().await;
    check_well_formed(&log.events().await);
}

/// Also over a restart, when only the log remembers what the file said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_keeps_its_last_good_entities() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let log = Log::sqlite().await;
    put(directory, "a.yaml", &[("a", "x"), ("b", "x")]);
    put(directory, "z.yaml", &[("z", "x")]);
    let bridge = start(directory, &log);
    wait_for(&bridge, &[("a", "x"), ("b", "x"), ("z", "x")]).await;

    std::fs::write(directory.join("a.yaml"), "kind: Component\nmetadata:\n  name: [\n").expect("written");
    put(directory, "z.yaml", &[("z", "y")]);
    wait_for(&bridge, &[("a", "x"), ("b", "x"), ("z", "y")]).await;
    let status = bridge.wait_for_status("invalid", |status| status.detail["invalidCount"] == 1).await;
    let invalid = &status.detail["invalid"][0];
    bridge.stop().await;
    assert_eq!(invalid["file"], "a.yaml");
    assert!(invalid["line"].as_u64().is_some_and(|line| line >= 3), "{invalid}");

    let bridge = start(directory, &log);
    put(directory, "z.yaml", &[("z", "z")]);
    wait_for(&bridge, &[("a", "x"), ("b", "x"), ("z", "z")]).await;
    put(directory, "a.yaml", &[("a", "y")]);
    wait_for(&bridge, &[("a", "y"), ("z", "z")]).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ref_in_two_files_is_shown_and_moves_on_when_the_first_lets_go() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let log = Log::sqlite().await;
    put(directory, "a.yaml", &[("a", "first")]);
    put(directory, "b.yaml", &[("a", "second"), ("b", "x")]);
    let bridge = start(directory, &log);
    wait_for(&bridge, &[("a", "first"), ("b", "x")]).await;
    let status = bridge.wait_for_status("in conflict", |status| status.detail["conflictCount"] == 1).await;
    let conflict = &status.detail["conflicts"][0];
    assert_eq!((conflict["takenFrom"].as_str(), conflict["leftOut"].as_str()), (Some("a.yaml"), Some("b.yaml")));

    std::fs::remove_file(directory.join("a.yaml")).expect("removed");

    wait_for(&bridge, &[("a", "second"), ("b", "x")]).await;
    bridge.stop().await;
}

/// A directory that is away is trouble, not a mass removal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_vanishes_removes_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("catalog");
    std::fs::create_dir(&directory).expect("made");
    let log = Log::sqlite().await;
    put(&directory, "a.yaml", &[("a", "x")]);
    let bridge = start(&directory, &log);
    wait_for(&bridge, &[("a", "x")]).await;

    std::fs::rename(&directory, parent.path().join("aside")).expect("moved");
    bridge.handle.reconcile("catalog").expect("owned");
    bridge.wait_for_state("retrying", |state| matches!(state, ConsumerState::Retrying { .. })).await;
    assert_eq!(log.events().await.len(), 1);
    std::fs::rename(parent.path().join("aside"), &directory).expect("moved");
    put(&directory, "a.yaml", &[("a", "y")]);

    wait_for(&bridge, &[("a", "y")]).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entity_of_five_megabytes_goes_through() {
    let directory = tempfile::tempdir().expect("a directory");
    let owner = "x".repeat(5 * 1024 * 1024);
    let log = Log::sqlite().await;
    put(directory.path(), "a.yaml", &[("a", &owner)]);

    let bridge = start(directory.path(), &log);

    wait_for(&bridge, &[("a", &owner)]).await;
    bridge.stop().await;
}
