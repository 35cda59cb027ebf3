//! What the catalog's tables look like, and which way of capture they allow.

use super::position::Way;
use super::settings::CaptureChoice;
use super::triggers::health::Triggers;
use crate::source::owner::SourceError;

/// What was found in the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Schema {
    /// Such as 150018.
    pub(super) server_version: i32,
    /// The role that we are.
    pub(super) role: String,
    /// Columns of `final_entities`; empty when there is no such table, or no way into its schema.
    pub(super) columns: Vec<String>,
    /// Whether we may read it.
    pub(super) may_select: bool,
    /// Whether there is a counter of generations that we may read.
    pub(super) counter: Counter,
    /// Whether the trigger that gives the generations is there and enabled.
    pub(super) has_generation_trigger: bool,
    /// The last migration's name, where we may read it.
    pub(super) last_migration: Option<String>,
    /// Our own triggers.
    pub(super) triggers: Triggers,
}

/// The counter of generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Counter {
    /// No such table.
    #[default]
    Absent,
    /// No right to read it.
    Forbidden,
    /// Readable.
    Readable,
}

/// The last migration that this release was tried with.
const KNOWN_MIGRATION: &str = "20261013000000_final_entity_generations.js";
/// Columns that every way needs.
const COLUMNS: [&str; 5] = ["entity_id", "entity_ref", "final_entity", "hash", "last_updated_at"];
/// PostgreSQL 13: older ones are past their end and were never tried.
const SERVER_VERSION_MIN: i32 = 130_000;

/// A way of capture, and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) way: Way,
    pub(super) why: String,
}

impl Schema {
    /// Chooses the way, or says what the operator has to change.
    pub(super) fn choose(&self, asked: CaptureChoice, schema: &str) -> Result<Choice, SourceError> {
        self.check(schema).map_err(SourceError::Misconfigured)?;
        let missing = self.missing_for_generations();
        let choice = |way, why: String| Ok(Choice { way, why });
        match (asked, &self.triggers, missing) {
            (CaptureChoice::Reconcile, ..) => choice(Way::Reconcile, "configured".to_owned()),
            (CaptureChoice::Generations, _, None) => choice(Way::Generations, "configured".to_owned()),
            (CaptureChoice::Generations, _, Some(missing)) => Err(SourceError::Misconfigured(format!(
                "capture: generations is not possible: {missing}; use capture: auto"
            ))),
            (CaptureChoice::Triggers, Triggers::Ready, _) => choice(Way::Triggers, "configured".to_owned()),
            (CaptureChoice::Triggers, triggers, _) => Err(SourceError::Misconfigured(format!(
                "capture: triggers is not possible: {}; run catalog-bridge source install, or use capture: auto",
                triggers.trouble().unwrap_or("they are not installed")
            ))),
            (CaptureChoice::Auto, Triggers::Ready, _) => {
                choice(Way::Triggers, "auto: the bridge's triggers are installed".to_owned())
            }
            (CaptureChoice::Auto, triggers, None) => {
                choice(Way::Generations, format!("auto: the catalog numbers its changes at commit{}", beside(triggers)))
            }
            (CaptureChoice::Auto, triggers, Some(missing)) => {
                choice(Way::Reconcile, format!("auto: {missing}{}", beside(triggers)))
            }
        }
    }

    /// For the log: a schema that was never tried is worth a line, not a refusal.
    pub(super) fn is_newer_than_known(&self) -> bool {
        self.last_migration.as_deref().is_some_and(|last| last > KNOWN_MIGRATION)
    }

    fn check(&self, schema: &str) -> Result<(), String> {
        if self.server_version < SERVER_VERSION_MIN {
            return Err(format!("PostgreSQL 13 or later is needed, this is {}", self.server_version / 10_000));
        }
        if self.columns.is_empty() {
            return Err(format!(
                "there is no table final_entities in schema \"{schema}\" that role \"{}\" can see: check database and schema, \
                 and its rights (catalog-bridge source grants --print)",
                self.role
            ));
        }
        if let Some(missing) = COLUMNS.iter().find(|column| !self.has_column(column)) {
            return Err(format!(
                "final_entities has no column {missing}: this catalog is older than Backstage 1.33; upgrade Backstage"
            ));
        }
        if !self.may_select {
            return Err(format!(
                "role \"{}\" may not read final_entities: catalog-bridge source grants --print shows what it needs",
                self.role
            ));
        }
        Ok(())
    }

    fn missing_for_generations(&self) -> Option<String> {
        if !self.has_column("generation") || self.counter == Counter::Absent {
            Some("the catalog gives no generations (its backend is older than 4.0.3)".to_owned())
        } else if self.counter == Counter::Forbidden {
            Some(format!("role \"{}\" may not read catalog_generation_counter", self.role))
        } else if !self.has_generation_trigger {
            Some("the trigger that gives generations is missing or disabled".to_owned())
        } else {
            None
        }
    }

    pub(super) fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column == name)
    }
}

/// Why installed triggers are not used, if they are not.
fn beside(triggers: &Triggers) -> String {
    triggers.trouble().map(|trouble| format!("; the bridge's triggers are not used: {trouble}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> Schema {
        Schema {
            server_version: 150_018,
            role: "bridge".to_owned(),
            columns: COLUMNS.iter().chain(["generation"].iter()).map(|&column| column.to_owned()).collect(),
            may_select: true,
            counter: Counter::Readable,
            has_generation_trigger: true,
            last_migration: None,
            triggers: Triggers::Absent,
        }
    }

    #[track_caller]
    fn check(schema: &Schema, asked: CaptureChoice, expected: Result<Way, &str>) {
        match (schema.choose(asked, "public"), expected) {
            (Ok(choice), Ok(way)) => assert_eq!(choice.way, way),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn auto_takes_generations_where_all_of_it_is_there() {
        check(&current(), CaptureChoice::Auto, Ok(Way::Generations));
        check(&current(), CaptureChoice::Reconcile, Ok(Way::Reconcile));
        let mut old = current();
        old.columns.retain(|column| column != "generation");
        check(&old, CaptureChoice::Auto, Ok(Way::Reconcile));
        check(&old, CaptureChoice::Generations, Err("older than 4.0.3"));
        let disabled = Schema { has_generation_trigger: false, ..current() };
        check(&disabled, CaptureChoice::Auto, Ok(Way::Reconcile));
        let forbidden = Schema { counter: Counter::Forbidden, ..current() };
        check(&forbidden, CaptureChoice::Generations, Err("may not read catalog_generation_counter"));
    }

    #[test]
    fn auto_takes_triggers_where_they_are_whole() {
        let ready = Schema { triggers: Triggers::Ready, ..current() };
        check(&ready, CaptureChoice::Auto, Ok(Way::Triggers));
        check(&ready, CaptureChoice::Generations, Ok(Way::Generations));
        let broken = Schema { triggers: Triggers::Broken("trigger x is disabled".to_owned()), ..current() };
        check(&broken, CaptureChoice::Auto, Ok(Way::Generations));
        let why = broken.choose(CaptureChoice::Auto, "public").expect("chosen").why;
        assert!(why.ends_with("the bridge's triggers are not used: trigger x is disabled"), "{why}");
        check(&broken, CaptureChoice::Triggers, Err("trigger x is disabled"));
        check(&current(), CaptureChoice::Triggers, Err("source install"));
    }

    #[test]
    fn what_is_missing_for_every_way_is_said() {
        check(
            &Schema { columns: Vec::new(), ..current() },
            CaptureChoice::Auto,
            Err("no table final_entities in schema"),
        );
        check(&Schema { may_select: false, ..current() }, CaptureChoice::Auto, Err("may not read final_entities"));
        check(&Schema { server_version: 120_004, ..current() }, CaptureChoice::Auto, Err("this is 12"));
        let mut ancient = current();
        ancient.columns.retain(|column| column != "entity_ref");
        check(&ancient, CaptureChoice::Auto, Err("no column entity_ref"));
    }
}
