//! A file of NDJSON.

use std::path::PathBuf;

use anyhow::{Result, bail};
use async_trait::async_trait;
use catalog_bridge_history::{Delivered, Lane};
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::{Destination, fresh_name};
use crate::fault::Fault;
use crate::judge::Promises;
use crate::matrix::Cell;
use crate::support::delivered_lines;

/// A directory of the cell's own, with its file.
pub(crate) struct LocalFile {
    parent: TempDir,
    directory: PathBuf,
}

impl LocalFile {
    pub(crate) fn start() -> Result<Self> {
        let parent = tempfile::tempdir()?;
        let directory = parent.path().to_owned();
        Ok(LocalFile { parent, directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.join("events.ndjson")
    }
}

#[async_trait(?Send)]
impl Destination for LocalFile {
    async fn prepare(&mut self, _: &Cell) -> Result<()> {
        self.directory = self.parent.path().join(fresh_name());
        Ok(std::fs::create_dir(&self.directory)?)
    }

    fn section(&self) -> String {
        format!("file: {{ path: \"{}\" }}, encoding: json", self.path().display())
    }

    fn promises(&self) -> Promises {
        Promises { lane: Lane::Stream, window: 0, is_fenced: true }
    }

    async fn read(&mut self) -> Result<Vec<Delivered>> {
        delivered_lines(&self.path())
    }

    async fn harm(&mut self, fault: Fault, _: &mut StdRng) -> Result<()> {
        match fault {
            Fault::Absent => Ok(std::fs::remove_dir(&self.directory)?),
            _ => bail!("a file has no fault \"{fault}\""),
        }
    }

    async fn heal(&mut self, _: Fault) -> Result<()> {
        Ok(std::fs::create_dir(&self.directory)?)
    }

    fn is_stopped_by(&self, _: Fault) -> bool {
        true
    }

    fn is_emptied_when_removed(&self) -> bool {
        false
    }
}
