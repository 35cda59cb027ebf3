//! The contract of the event log, each method in the file of its subject.

use std::sync::Arc;

use async_trait::async_trait;
use catalog_bridge_api::{EntityRef, Offset, SourceName};
use tokio::sync::watch;
use uuid::Uuid;

use super::super::{
    Append, Appended, EventLog, HeldEntity, LogEntry, LogState, Page, ReadLimits, Rejected, RetentionPolicy,
    RetentionReport, StatePage, StoreError, queries, retention,
};
use super::{SqliteStore, read};

#[async_trait]
impl EventLog for SqliteStore {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        self.append_changes(append).await
    }

    async fn read(&self, after: Offset, limits: ReadLimits) -> Result<Page, StoreError> {
        self.bounded(read::ACTION, self.read_page(after, limits)).await
    }

    async fn state_at(
        &self,
        at: Offset,
        after_ref: Option<&EntityRef>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError> {
        self.read_state_at(at, after_ref, limits).await
    }

    async fn walk(
        &self,
        at: Offset,
        after: Offset,
        removals_above: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError> {
        self.read_walk(at, after, removals_above, limits).await
    }

    async fn state(&self) -> Result<LogState, StoreError> {
        self.bounded("read the log's state", self.ask_state()).await
    }

    fn watch(&self) -> watch::Receiver<LogState> {
        self.head.subscribe()
    }

    async fn event(&self, offset: Offset) -> Result<Option<LogEntry>, StoreError> {
        self.bounded(read::ACTION, self.read_event(offset)).await
    }

    async fn latest(&self, entity_ref: &EntityRef) -> Result<Option<LogEntry>, StoreError> {
        self.bounded(read::ACTION, self.read_latest(entity_ref)).await
    }

    async fn history(
        &self,
        entity_ref: &EntityRef,
        before: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        self.bounded(read::ACTION, self.read_history(entity_ref, before, limits)).await
    }

    async fn held(
        &self,
        source: &SourceName,
        after_ref: Option<&EntityRef>,
        limit: usize,
    ) -> Result<Vec<HeldEntity>, StoreError> {
        self.read_held(source, after_ref, limit).await
    }

    async fn held_by_ref(&self, entity_refs: &[EntityRef]) -> Result<Vec<(HeldEntity, SourceName)>, StoreError> {
        self.read_held_by_ref(entity_refs).await
    }

    async fn held_count(&self, source: &SourceName) -> Result<u64, StoreError> {
        self.count(queries::HELD_COUNT, source).await
    }

    async fn rejected(
        &self,
        source: &SourceName,
        after_ref: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Rejected>, StoreError> {
        self.read_rejected(source, after_ref, limit).await
    }

    async fn rejected_count(&self, source: &SourceName) -> Result<u64, StoreError> {
        self.count(queries::REJECTED_COUNT, source).await
    }

    async fn redact(&self, entity_ref: &EntityRef) -> Result<u64, StoreError> {
        self.bounded("redact an entity", self.redact_entity(entity_ref)).await
    }

    async fn new_log_id(&self, reason: &str) -> Result<Uuid, StoreError> {
        self.bounded("give the log a new id", self.renew_log_id(reason)).await
    }

    async fn retain(&self, policy: &RetentionPolicy) -> Result<RetentionReport, StoreError> {
        let report = retention::retain(self, &self.ledger, policy).await?;
        self.metrics.retained(&report);
        Ok(report)
    }
}
