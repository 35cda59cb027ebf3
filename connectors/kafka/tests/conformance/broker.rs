//! The Kafka that tests which harm nothing share; it has every listener.

use catalog_bridge_services::{Kafka, KafkaOptions};
use tokio::sync::OnceCell;

/// The shared server.
pub(crate) async fn shared() -> &'static Kafka {
    static SHARED: OnceCell<Kafka> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let options = KafkaOptions { secured: true, ..KafkaOptions::default() };
            Kafka::start(options).await.expect("Kafka starts")
        })
        .await
}

/// A server of one test's own, to be harmed.
pub(crate) async fn own() -> anyhow::Result<Kafka> {
    Kafka::start(KafkaOptions::default()).await
}
