//! The file sink under the kit, and what only a file can suffer.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use catalog_bridge_api::{BuildContext, Connector, ConnectorKind, Ordering, SinkName};
use catalog_bridge_conformance::{Delivered, Destination, Patient, Promises, judge};

struct Files;

struct OneFile {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

#[async_trait]
impl Patient for Files {
    fn promises(&self) -> Promises {
        Promises { exactly_once: true, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("catalog.ndjson");
        Ok(Arc::new(OneFile { _directory: directory, path }))
    }
}

#[async_trait]
impl Destination for OneFile {
    fn connector(&self, ordering: Ordering) -> Result<Box<dyn Connector>> {
        build(&self.path, ordering)
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        let Ok(text) = std::fs::read_to_string(&self.path) else { return Ok(Vec::new()) };
        text.lines().map(delivered).collect()
    }

    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        let text = std::fs::read_to_string(&self.path)?;
        text.lines().map(attributes).collect()
    }
}

fn build(path: &Path, ordering: Ordering) -> Result<Box<dyn Connector>> {
    let context = BuildContext { sink: SinkName::parse("conformance")?, ordering, ensure: false };
    Ok(catalog_bridge_file::KIND.build(serde_json::json!({ "path": path }), context)?)
}

fn attributes(line: &str) -> Result<BTreeMap<String, String>> {
    let value: BTreeMap<String, serde_json::Value> = serde_json::from_str(line)?;
    Ok(value.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect())
}

fn delivered(line: &str) -> Result<Delivered> {
    let value: serde_json::Value = serde_json::from_str(line).with_context(|| format!("line {line:?}"))?;
    let text = |name: &str| value[name].as_str().with_context(|| format!("{name} in {line}")).map(str::to_owned);
    Ok(Delivered {
        offset: text("bridgeoffset")?.parse::<u64>()?.into(),
        key: text("subject")?,
        generation: text("bridgegeneration")?.parse()?,
        bytes: line.as_bytes().to_vec(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_sink_conforms() {
    judge(&Files).await.assert_all_held();
}

/// A foreign last line without an end may be somebody's only copy.
#[tokio::test]
async fn a_file_of_others_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("settings.json");
    std::fs::File::create(&path).and_then(|mut file| file.write_all(b"{\"a\":1}")).expect("written");

    let error = build(&path, Ordering::Entity).expect("built").check().await.expect_err("refused");

    assert!(error.to_string().contains("name another file"), "{error}");
    assert_eq!(std::fs::read(&path).expect("read"), b"{\"a\":1}");
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let error = build(Path::new("/nowhere/at/all.ndjson"), Ordering::Entity)
        .expect("built")
        .check()
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("/nowhere/at does not exist; create it or set ensure: true"), "{error}");
}
