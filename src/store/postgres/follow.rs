//! Follows the head that other replicas move: a poll each 250 ms, and where a direct connection is configured NOTIFY.
//!
//! Nothing relies on the notifications: they only make the next poll come at once.

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::Secret;
use sqlx::postgres::PgListener;
use tokio::task::JoinHandle;

use super::PostgresStore;

/// The channel on which appends notify.
pub(super) const CHANNEL: &str = "catalog_bridge_head";

/// How old what is known of the head may become.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a listener that cannot connect waits.
const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// The tasks; they end with the last clone of the store.
#[derive(Debug)]
pub(super) struct Follower {
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Follower {
    /// Starts following; `store` must hold no follower itself, else none would ever end.
    pub(super) fn start(store: PostgresStore, listen_url: Option<Secret>) -> Arc<Follower> {
        let mut tasks = Vec::new();
        if let Some(url) = listen_url {
            tasks.push(tokio::spawn(listen(store.clone(), url)));
        }
        tasks.push(tokio::spawn(poll(store)));
        Arc::new(Follower { tasks })
    }
}

async fn poll(store: PostgresStore) {
    let mut is_away = false;
    loop {
        let _ = tokio::time::timeout(POLL_INTERVAL, store.wake.notified()).await;
        match store.bounded("follow the log's head", store.ask_state()).await {
            Ok(_) if is_away => {
                is_away = false;
                tracing::info!("the store is back");
            }
            Ok(_) => {}
            Err(error) if !is_away => {
                is_away = true;
                tracing::warn!(error = %error, "the store is away");
            }
            Err(_) => {}
        }
    }
}

async fn listen(store: PostgresStore, url: Secret) {
    let mut is_away = false;
    loop {
        if let Err(error) = listen_once(&store, &url).await
            && !is_away
        {
            is_away = true;
            tracing::warn!(error = %error, "log.listen_url: listening failed; other replicas' events are found by polling");
        }
        tokio::time::sleep(LISTEN_RETRY).await;
    }
}

async fn listen_once(store: &PostgresStore, url: &Secret) -> Result<(), catalog_bridge_api::BoxError> {
    let url = url.open()?;
    let mut listener = PgListener::connect(&url).await?;
    listener.listen(CHANNEL).await?;
    loop {
        listener.recv().await?;
        store.wake.notify_one();
    }
}
