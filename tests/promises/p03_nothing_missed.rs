//! P3: everything the catalog committed reaches the log, per entity in commit order; nothing that did not commit does.

use anyhow::{Context, Result};

use crate::support::catalog::Catalog;
use crate::support::history::History;
use crate::support::{catalog_database, stores};

/// Random concurrent transactions, the daemon killed at random moments: log = truth.
#[tokio::test(flavor = "multi_thread")]
async fn log_equals_truth_under_concurrent_transactions_and_kills() -> Result<()> {
    for (store, source) in stores().await?.iter().zip(["capture: generations", "capture: reconcile"]) {
        let catalog = Catalog::create(&catalog_database().await?).await?;
        let history = History { catalog: &catalog, store, source, is_two_phase: false, has_every_version: false };
        history.check().await.with_context(|| format!("{}, {source}", store.name()))?;
    }
    Ok(())
}
