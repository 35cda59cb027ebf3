//! The layout that ARCHITECTURE.md describes is the layout that there is.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Dependencies point one way: connectors know nothing of the daemon, the store nothing of those above it.
#[test]
fn rooms_depend_in_one_direction() {
    let forbidden = [
        ("src/store", ["crate::http", "crate::delivery", "crate::source::", "crate::config"].as_slice()),
        ("src/source", &["crate::http", "crate::delivery", "crate::config", "crate::cli"]),
        ("src/delivery", &["crate::http", "crate::source::", "crate::config", "crate::cli"]),
        ("src/http", &["crate::config", "crate::cli", "crate::delivery::driver"]),
        ("src/telemetry", &["crate::http", "crate::delivery", "crate::source::"]),
    ];
    for (room, words) in forbidden {
        for file in sources(&root().join(room)) {
            let text = std::fs::read_to_string(&file).expect("readable source");
            for word in words {
                assert!(!text.contains(word), "{} names {word}: {room} must not know it", file.display());
            }
        }
    }
}

/// Every room says first what it keeps and what it knows nothing of.
#[test]
fn every_room_begins_with_its_doc() {
    for room in std::fs::read_dir(root().join("src"))
        .expect("src")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        let door = [room.join("mod.rs"), room.with_extension("rs")]
            .into_iter()
            .find_map(|file| std::fs::read_to_string(file).ok());
        assert!(door.is_some_and(|text| text.starts_with("//! ")), "{} has no module doc at its door", room.display());
    }
}

/// A file that outgrows 800 lines holds two ideas.
#[test]
fn no_source_file_is_longer_than_800_lines() {
    for folder in ["src", "connectors", "tests"] {
        for file in sources(&root().join(folder)) {
            let lines = std::fs::read_to_string(&file).expect("readable source").lines().count();
            assert!(lines <= 800, "{} has {lines} lines: name its two ideas and split it", file.display());
        }
    }
}

/// What is not done is said in an issue, never in the tree.
#[test]
fn no_unfinished_mark_is_left_in_the_tree() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimpl", "emented!("), concat!("to", "do!(")];
    for folder in ["src", "connectors", "tests"] {
        for file in sources(&root().join(folder)) {
            let text = std::fs::read_to_string(&file).expect("readable source");
            for mark in marks {
                assert!(!text.contains(mark), "{} holds {mark}", file.display());
            }
        }
    }
}
