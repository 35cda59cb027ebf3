//! The generated pages say what the code says.

use std::path::PathBuf;

/// Names the first line that differs and the command that makes the page again.
#[track_caller]
fn check_fresh(page: &str, expected: &str, command: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    if found.trim_end() == expected.trim_end() {
        return;
    }
    let (mut old, mut new) = (found.lines(), expected.lines());
    let mut number = 1;
    let (old, new) = loop {
        match (old.next(), new.next()) {
            (Some(old), Some(new)) if old == new => number += 1,
            (old, new) => break (old.unwrap_or("(the end)"), new.unwrap_or("(the end)")),
        }
    };
    panic!("docs/{page} is stale at line {number}:\n- {old}\n+ {new}\nmake it again: {command}");
}

#[test]
fn configuration_page_is_fresh() {
    check_fresh(
        "configuration.md",
        &catalog_bridge::config::reference::markdown(),
        "cargo run -- schema --docs > docs/configuration.md",
    );
}

#[test]
fn metrics_page_is_fresh() {
    check_fresh(
        "metrics.md",
        &catalog_bridge::daemon::metrics_page(),
        "cargo run -- schema --metrics > docs/metrics.md",
    );
}
