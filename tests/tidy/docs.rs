//! The generated pages say what the code says.

use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names the first line that differs and the command that makes the page again.
#[track_caller]
fn check_fresh(page: &str, expected: &str, command: &str) {
    let path = root().join("docs").join(page);
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

/// All pages for people.
fn pages() -> Vec<PathBuf> {
    let list = |folder: &str| std::fs::read_dir(root().join(folder)).into_iter().flatten().flatten();
    let folders = ["", "docs", "connectors"].map(|folder| root().join(folder)).into_iter();
    let folders = folders.chain(list("connectors").map(|entry| entry.path()));
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// What a page shows as a config is one: the loader takes it as it stands, or with a log before it.
#[test]
fn every_config_that_a_page_shows_is_taken() {
    let environment =
        |name: &str| Some(if name.ends_with("URL") { "postgres://u@h/d" } else { "a-long-enough-value" }.to_owned());
    let mut found = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("readable");
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let has = |key: &str| block.lines().any(|line| line.starts_with(key));
            if !has("log:") && !has("sinks:") && !has("sources:") {
                continue;
            }
            let config = if has("log:") { block.to_owned() } else { format!("{block}log: sqlite:log.db\n") };
            found += 1;
            if let Err(refusals) = catalog_bridge::config::parse(&config, &environment) {
                panic!("{} shows a config that is refused: {refusals:?}\n{block}", page.display());
            }
        }
    }
    assert!(found >= 3, "only {found} configs were found");
}
