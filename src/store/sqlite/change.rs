//! What an operator changes in the log: bodies removed, a new log id.

use catalog_bridge_api::EntityRef;
use chrono::Utc;
use sqlx::{SqliteConnection, query, raw_sql};
use uuid::Uuid;

use super::super::checkpoint::EPOCH_JUMP;
use super::super::{LogState, StoreError};
use super::{SqliteStore, microseconds_of, unavailable};

impl SqliteStore {
    pub(super) async fn redact_entity(&self, entity_ref: &EntityRef) -> Result<u64, StoreError> {
        const REDACT: &str = "
            update events
            set entity = null, entity_bytes = 0, changed = null
            where entity_ref = $1 and (entity is not null or changed is not null)";
        let action = "redact an entity";
        let mut transaction = self.begin_write().await?;
        // What is freed is overwritten; otherwise the bodies would stay in the file's free pages.
        raw_sql("pragma secure_delete = on").execute(&mut *transaction).await.map_err(unavailable(action))?;
        let state = self.lock_head(&mut transaction).await?;
        let redacted = query(REDACT)
            .bind(entity_ref.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(unavailable(action))?
            .rows_affected();
        // Counted also when no row was left to redact: a repetition after a lost answer empties the caches again.
        query("update log_state set redactions = redactions + 1")
            .execute(&mut *transaction)
            .await
            .map_err(unavailable(action))?;
        raw_sql("pragma secure_delete = off").execute(&mut *transaction).await.map_err(unavailable(action))?;
        transaction.commit().await.map_err(unavailable(action))?;
        self.publish(&LogState { redactions: state.redactions + 1, ..state });
        // And what the write-ahead log still holds goes with it, unless a reader is in the way: then with a later checkpoint.
        if let Err(error) = raw_sql("pragma wal_checkpoint(truncate)").execute(&self.writer).await {
            tracing::warn!(error = %error, "the write-ahead log could not be emptied after a redaction");
        }
        Ok(redacted)
    }

    pub(super) async fn renew_log_id(&self, reason: &str) -> Result<Uuid, StoreError> {
        let action = "give the log a new id";
        let mut transaction = self.begin_write().await?;
        let state = self.lock_head(&mut transaction).await?;
        let log_id = renew_in(&mut transaction).await.map_err(unavailable(action))?;
        transaction.commit().await.map_err(unavailable(action))?;
        tracing::warn!(reason, before = %state.log_id, now = %log_id, "the log has a new id; readers bootstrap again");
        self.publish(&LogState { log_id, ..state });
        Ok(log_id)
    }
}

/// Under the head lock: a new log id, a new generation for every sink, owners that claim
/// again, and no answer to a request to the old log.
pub(super) async fn renew_in(connection: &mut SqliteConnection) -> Result<Uuid, sqlx::Error> {
    const RENEW_CONSUMERS: &str = "
        update checkpoints
        set generation = case kind when 'sink' then generation + 1 else generation end,
            epoch = epoch + $1,
            updated_at = $2";
    let log_id = Uuid::new_v4();
    query("update log_state set log_id = $1").bind(log_id.to_string()).execute(&mut *connection).await?;
    query(RENEW_CONSUMERS).bind(EPOCH_JUMP).bind(microseconds_of(Utc::now())).execute(&mut *connection).await?;
    query("delete from idempotency").execute(connection).await?;
    Ok(log_id)
}
