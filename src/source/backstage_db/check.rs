//! Looks at a catalog's database once: what `check` tells before the first start.

use catalog_bridge_api::{CheckReport, EntityRef, JsonText};

use super::catalog::Catalog;
use super::settings::Settings;

/// What a catalog holds.
#[derive(Debug, Default)]
pub struct Inspection {
    /// For a person.
    pub report: CheckReport,
    /// How many entities are present.
    pub present: u64,
    /// Those of them that are larger than was asked for.
    pub large: Vec<(EntityRef, JsonText)>,
}

/// Dials the catalog as capture does, and chooses a way as it would; `larger_than` bytes selects the entities that are returned.
/// The error says what to change.
pub async fn inspect(settings: &Settings, larger_than: usize) -> Result<Inspection, String> {
    let told = |error: crate::source::owner::SourceError| error.to_string();
    let mut catalog = Catalog::connect(settings).await.map_err(told)?;
    let schema = catalog.schema().await.map_err(told)?;
    let choice = schema.choose(settings.capture, &settings.schema).map_err(told)?;
    let mut report = CheckReport::default();
    let version = schema.server_version / 10_000;
    report.facts.push(format!("PostgreSQL {version} at {}, role {}", catalog.endpoint(), schema.role));
    report.facts.push(format!("capture by {} ({})", choice.way.name(), choice.why));
    if schema.is_newer_than_known() {
        report.warnings.push("the catalog's schema is newer than this release was tried with".to_owned());
    }
    let (present, refs) = catalog.larger_than(larger_than).await.map_err(told)?;
    report.facts.push(format!("{present} entities"));
    let mut large = Vec::new();
    for text in refs {
        let Ok(entity_ref) = EntityRef::parse(&text) else { continue };
        // One by one: a hundred at once may be more than a gigabyte in one answer, and longer than a statement may take.
        let body = catalog.body(&text).await.map_err(told)?;
        large.extend(body.and_then(|body| JsonText::parse(body).ok()).map(|entity| (entity_ref, entity)));
    }
    Ok(Inspection { report, present, large })
}
