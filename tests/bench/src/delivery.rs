//! Measures delivery: what encoding an event costs, and how fast a log reaches a file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use catalog_bridge::delivery::{self, Nudge, OnExpired, OnOversize, OnRefused, Sink};
use catalog_bridge::filter::View;
use catalog_bridge::sinks::connector_kind;
use catalog_bridge::store::{ConsumerKind, Start, Store, Tail};
use catalog_bridge::telemetry::StatusBoard;
use catalog_bridge_api::{
    BuildContext, Cause, Encoder, EncoderSettings, Encoding, EntityRef, Event, EventType, Offset, Ordering, SinkName,
};

/// Nanoseconds per event of 2 KiB.
pub(crate) fn encode(entity: &catalog_bridge_api::JsonText) -> Result<()> {
    let at = std::time::SystemTime::now().into();
    let event = Event {
        offset: Offset::new(123_456),
        event_type: EventType::Updated,
        entity_ref: EntityRef::parse("component:default/some-service")?,
        uid: Some("0b4f6f3e-6a4c-4a4e-9a44-0c6a1a3d1f10".to_owned()),
        entity: Some(entity.clone()),
        changed: None,
        reason: None,
        occurred_at: at,
        recorded_at: at,
        cause: Cause::Capture,
        previous_offset: Some(Offset::new(100_000)),
    };
    for (name, encoding, omit) in [
        ("json", Encoding::Json, None),
        ("cloudevents", Encoding::Cloudevents, None),
        ("cloudevents-binary", Encoding::CloudeventsBinary, None),
        ("cloudevents, omit", Encoding::Cloudevents, Some("metadata.annotations")),
    ] {
        let encoder = Encoder::new(EncoderSettings {
            encoding,
            log_id: uuid::Uuid::from_u128(7),
            generation: 1,
            omit: omit.into_iter().map(str::to_owned).collect(),
            message_bytes_max: Some(1_000_000),
            reference_base: "/api/catalog".to_owned(),
        });
        let started = Instant::now();
        let rounds: u32 = 200_000;
        for _ in 0..rounds {
            std::hint::black_box(encoder.encode(std::hint::black_box(&event)));
        }
        println!("  encode {name:<24} {:>9} ns/event", (started.elapsed() / rounds).as_nanos());
    }
    Ok(())
}

/// The whole log into a file, each batch synced.
pub(crate) async fn to_file(log: &Arc<dyn Store>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kind = connector_kind("file").context("the file connector")?;
    let name = SinkName::parse("bench")?;
    let context = BuildContext { sink: name.clone(), ordering: Ordering::Entity, ensure: false };
    let section = serde_json::json!({ "path": directory.path().join("events.ndjson") });
    let sink = Sink {
        name,
        protocol: kind.name(),
        connector: kind.build(section, context)?.into(),
        view: View::default(),
        omit: Vec::new(),
        start: Start::Earliest,
        encoding: Encoding::Cloudevents,
        ordering: Ordering::Entity,
        on_refused: OnRefused::Block,
        on_oversize: OnOversize::Reference,
        on_expired: OnExpired::Wait,
        public_url: None,
        base_path: "/api/catalog".to_owned(),
    };
    let tail = Tail::new(Arc::clone(log), 64 * 1024 * 1024);
    let head = log.state().await?.head;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let started = Instant::now();
    let running = tokio::spawn(delivery::run(
        vec![sink],
        tail,
        StatusBoard::default(),
        delivery::Metrics::new(),
        Nudge::new(),
        delivery::Settings::new("bench"),
        shutdown.clone(),
    ));
    while log.checkpoint(ConsumerKind::Sink, "bench").await?.is_none_or(|row| row.offset < head) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    crate::report("delivered to a file", usize::try_from(head.get())?, started.elapsed());
    shutdown.cancel();
    running.await?;
    Ok(())
}
