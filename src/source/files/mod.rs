//! Reads a directory of `catalog-info.yaml` files, and watches it.
//!
//! Invariants: what the log holds follows the files; a file that cannot be read or understood keeps its last good entities and
//! says so with its line; a ref in two files belongs to the first of them by path, and the others are shown. Which file a ref
//! came from is kept in the log (`source_version` is `path#digest`), so a restart with a broken file removes nothing.
//! Holds no entity longer than an append. Knows nothing of Backstage's processing: entities are taken as they are written.

mod directory;
mod document;
mod plan;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use catalog_bridge_api::{Cause, EntityRef, JsonText};
use chrono::Utc;
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use self::directory::{FileState, Scan};
use self::plan::{Claim, Held, Plan};
use super::owner::{Owner, SourceError};
use super::report::Report;
use super::runner::Trouble;
use crate::store::{APPEND_CHANGES_MAX, Change, Removal, Upsert};
use crate::telemetry::ConsumerState;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A directory, read with everything below it, or one file.
    pub path: PathBuf,
    /// Pause between looks at everything, beside the watch.
    pub rescan_interval: Duration,
}

impl Settings {
    /// The defaults, for a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Settings { path: path.into(), rescan_interval: Duration::from_secs(30) }
    }
}

/// Most bytes of entities in one append; a single larger entity comes alone.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Refs read from the store at once.
const HELD_PAGE: usize = 5_000;
/// Problems shown in the status.
const SHOWN_MAX: usize = 50;

/// What is remembered of the files under one claim.
pub(super) struct Capture {
    settings: Settings,
    /// By path below the directory.
    files: BTreeMap<String, FileState>,
    held: Option<BTreeMap<EntityRef, Held>>,
    /// What the store could not take of what we stated.
    rejected: u64,
}

impl Capture {
    pub(super) fn new(settings: Settings) -> Self {
        Capture { settings, files: BTreeMap::new(), held: None, rejected: 0 }
    }

    /// Reads the files again whenever they change, until something fails or the ownership ends.
    pub(super) async fn run(
        &mut self,
        owner: &mut Owner,
        report: &mut Report,
        trouble: &mut Trouble,
    ) -> Result<(), SourceError> {
        let (mut changes, is_watched) = watch::watch(&self.settings.path);
        if !is_watched {
            warn!(source = report.name, "the directory cannot be watched; it is read every few seconds instead");
        }
        let pause = if is_watched { self.settings.rescan_interval } else { watch::UNWATCHED_INTERVAL };
        while !owner.stop.is_cancelled() {
            self.scan(owner, report).await?;
            trouble.clear();
            tokio::select! {
                () = changes.settled() => {}
                () = tokio::time::sleep(pause) => {}
                () = report.commands.woken() => {}
                () = owner.stop.cancelled() => {}
            }
            if report.commands.take_reconcile() {
                self.files.clear();
                self.held = None;
            }
        }
        Ok(())
    }

    async fn scan(&mut self, owner: &mut Owner, report: &mut Report) -> Result<(), SourceError> {
        let Scan { files } = self.read_directory().await?;
        log_new_problems(&self.files, &files);
        self.files = files;
        let held = match self.held.take() {
            Some(held) => held,
            None => load_held(owner).await?,
        };
        let held = self.held.insert(held);
        let plan = Plan::new(&self.files, held);
        let position = position(&self.files);
        for path in plan.paths_to_read() {
            let Some(entities) = self.read_again(path).await? else { continue };
            let wanted = entities.into_iter().filter(|(claim, _)| plan.belongs_to(&claim.entity_ref, path));
            self.append_upserts(owner, report, path, wanted.collect(), &position).await?;
        }
        self.append_removals(owner, report, plan.removals, &position).await?;
        owner.save_position(position).await?;
        self.rejected = owner.store.rejected_count(&owner.source).await?;
        self.publish(report, &plan.conflicts);
        Ok(())
    }

    async fn read_directory(&self) -> Result<Scan, SourceError> {
        let (path, known) = (self.settings.path.clone(), self.files.clone());
        let endpoint = path.display().to_string();
        let scanned = tokio::task::spawn_blocking(move || directory::scan(&path, &known)).await;
        match scanned {
            Ok(Ok(scan)) => Ok(scan),
            // A directory that is away says nothing about its entities, so nothing is removed.
            Ok(Err(error)) => {
                Err(SourceError::Transient { action: "read the directory", endpoint, source: Box::new(error) })
            }
            Err(error) => {
                Err(SourceError::Transient { action: "read the directory", endpoint, source: Box::new(error) })
            }
        }
    }

    /// The entities of a good file; `None` when it is no longer good: the next scan tells.
    async fn read_again(&self, path: &str) -> Result<Option<Vec<(Claim, JsonText)>>, SourceError> {
        let (root, relative) = (self.settings.path.clone(), path.to_owned());
        let read = tokio::task::spawn_blocking(move || directory::read_entities(&root, &relative)).await;
        let read = read.map_err(|error| SourceError::Transient {
            action: "read a file",
            endpoint: path.to_owned(),
            source: Box::new(error),
        })?;
        Ok(read.ok())
    }

    async fn append_upserts(
        &mut self,
        owner: &mut Owner,
        report: &Report,
        path: &str,
        entities: Vec<(Claim, JsonText)>,
        position: &JsonText,
    ) -> Result<(), SourceError> {
        let changed_at = self.files.get(path).and_then(FileState::changed_at);
        let mut entities = entities.into_iter().peekable();
        while entities.peek().is_some() {
            let mut changes = Vec::new();
            let mut stated = Vec::new();
            let mut bytes = 0;
            while let Some((claim, entity)) = entities.next_if(|(_, entity)| {
                changes.is_empty() || (bytes + entity.len() <= BATCH_BYTES && changes.len() < APPEND_CHANGES_MAX)
            }) {
                bytes += entity.len();
                changes.push(Change::Upsert(Upsert {
                    entity_ref: claim.entity_ref.clone(),
                    uid: claim.uid,
                    entity,
                    source_version: Some(claim.version.clone()),
                    source_position: None,
                    occurred_at: changed_at,
                    cause: Cause::Capture,
                }));
                stated.push((claim.entity_ref, claim.version));
            }
            let appended = owner.append(changes, Vec::new(), position.clone()).await?;
            report.metrics.count_events(Cause::Capture.as_str(), appended.appended);
            match &mut self.held {
                Some(held) if appended.refused == 0 => {
                    held.extend(stated.into_iter().map(|(entity_ref, version)| (entity_ref, Held::new(version))));
                }
                // Some belong to another source: the store knows which.
                held => *held = Some(load_held(owner).await?),
            }
        }
        Ok(())
    }

    async fn append_removals(
        &mut self,
        owner: &mut Owner,
        report: &Report,
        removals: Vec<EntityRef>,
        position: &JsonText,
    ) -> Result<(), SourceError> {
        for some in removals.chunks(APPEND_CHANGES_MAX) {
            let removal = |entity_ref: &EntityRef| {
                Change::Remove(Removal { entity_ref: entity_ref.clone(), occurred_at: None, cause: Cause::Capture })
            };
            let appended = owner.append(some.iter().map(removal).collect(), Vec::new(), position.clone()).await?;
            report.metrics.count_events(Cause::Capture.as_str(), appended.appended);
            if let Some(held) = &mut self.held {
                some.iter().for_each(|entity_ref| drop(held.remove(entity_ref)));
            }
        }
        Ok(())
    }

    fn publish(&self, report: &mut Report, conflicts: &[plan::Conflict]) {
        let now = Utc::now();
        let invalid: Vec<_> = self.files.iter().filter_map(|(path, file)| Some((path, file.problem()?))).collect();
        let count = self.held.as_ref().map_or(0, BTreeMap::len);
        report.last_look = Some(now);
        report.metrics.set_last_look(now.timestamp());
        report.metrics.set_entities(count);
        report.metrics.set_rejected(usize::try_from(self.rejected).unwrap_or(usize::MAX));
        report.detail = json!({
            "path": self.settings.path,
            "files": self.files.len(),
            "entities": count,
            "rejected": self.rejected,
            "invalidCount": invalid.len(),
            "invalid": invalid.iter().take(SHOWN_MAX).map(|(path, problem)| {
                json!({ "file": path, "line": problem.line, "reason": problem.reason })
            }).collect::<Vec<_>>(),
            "conflictCount": conflicts.len(),
            "conflicts": conflicts.iter().take(SHOWN_MAX).collect::<Vec<_>>(),
            "lastLookAt": now,
        });
        report.publish(ConsumerState::Running);
    }
}

fn log_new_problems(before: &BTreeMap<String, FileState>, now: &BTreeMap<String, FileState>) {
    for (path, file) in now {
        let was = before.get(path).and_then(FileState::problem);
        match (was, file.problem()) {
            (was, Some(problem)) if was != Some(problem) => {
                warn!(
                    file = path,
                    line = problem.line,
                    reason = problem.reason,
                    "a file is invalid; its last good entities stay"
                );
            }
            (Some(_), None) => info!(file = path, "a file is good again"),
            _ => {}
        }
    }
}

/// What the log has of us: held, and rejected ones, which a removal clears.
async fn load_held(owner: &Owner) -> Result<BTreeMap<EntityRef, Held>, SourceError> {
    let mut all = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = owner.store.rejected(&owner.source, after.as_deref(), HELD_PAGE).await?;
        let refs = page.iter().filter_map(|rejected| EntityRef::parse(&rejected.entity_ref).ok());
        all.extend(refs.map(|entity_ref| (entity_ref, Held::rejected())));
        match page.last() {
            Some(last) if page.len() >= HELD_PAGE => after = Some(last.entity_ref.clone()),
            _ => break,
        }
    }
    let mut after: Option<EntityRef> = None;
    loop {
        let page = owner.store.held(&owner.source, after.as_ref(), HELD_PAGE).await?;
        after = page.last().filter(|_| page.len() >= HELD_PAGE).map(|last| last.entity_ref.clone());
        let held = page.into_iter().map(|held| (held.entity_ref, Held::new(held.source_version.unwrap_or_default())));
        all.extend(held);
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// A digest of all files: two equal positions are two equal directories.
fn position(files: &BTreeMap<String, FileState>) -> JsonText {
    let mut digest = Sha256::new();
    for (path, file) in files {
        digest.update(path);
        digest.update([0]);
        for claim in file.claims() {
            digest.update(&claim.version);
            digest.update([0]);
        }
    }
    let digest: [u8; 32] = digest.finalize().into();
    JsonText::from_trusted(json!({ "digest": document::hex(&digest[..16]) }).to_string())
}
