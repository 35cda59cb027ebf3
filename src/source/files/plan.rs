//! Decides what to state, from what the files say and what the log holds. Pure.

use std::collections::BTreeMap;

use catalog_bridge_api::EntityRef;
use serde::Serialize;

use super::directory::FileState;

/// One entity that a file brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) entity_ref: EntityRef,
    pub(super) uid: Option<String>,
    /// `path#digest`.
    pub(super) version: String,
}

/// What the log has of a ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// `None`: it was refused.
    version: Option<String>,
}

impl Held {
    pub(super) fn new(version: String) -> Self {
        Held { version: Some(version) }
    }

    pub(super) fn rejected() -> Self {
        Held { version: None }
    }

    /// The file that it came from.
    fn path(&self) -> Option<&str> {
        self.version.as_deref()?.rsplit_once('#').map(|(path, _)| path)
    }
}

/// A ref that stands in two files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Conflict {
    entity_ref: EntityRef,
    /// The file whose entity counts.
    taken_from: String,
    /// The file whose entity is left out.
    left_out: String,
}

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The path that each ref belongs to.
    owners: BTreeMap<EntityRef, String>,
    /// Files with something that the log does not have as it is.
    to_read: Vec<String>,
    /// Refs that no file brings any more.
    pub(super) removals: Vec<EntityRef>,
    pub(super) conflicts: Vec<Conflict>,
}

impl Plan {
    pub(super) fn new(files: &BTreeMap<String, FileState>, held: &BTreeMap<EntityRef, Held>) -> Self {
        let mut plan = Plan::default();
        // An invalid file keeps its last good entities, against other files too: else a ref would move to and fro.
        for (entity_ref, of) in held {
            let Some(path) = of.path() else { continue };
            if files.get(path).is_some_and(|file| file.problem().is_some()) {
                plan.owners.insert(entity_ref.clone(), path.to_owned());
            }
        }
        for (path, file) in files {
            plan.claim_all(path, file.claims(), held);
        }
        plan.removals = held.keys().filter(|entity_ref| !plan.owners.contains_key(entity_ref)).cloned().collect();
        plan
    }

    fn claim_all(&mut self, path: &str, claims: &[Claim], held: &BTreeMap<EntityRef, Held>) {
        let mut is_to_read = false;
        for claim in claims {
            match self.owners.get(&claim.entity_ref) {
                Some(owner) => self.conflicts.push(Conflict {
                    entity_ref: claim.entity_ref.clone(),
                    taken_from: owner.clone(),
                    left_out: path.to_owned(),
                }),
                None => {
                    self.owners.insert(claim.entity_ref.clone(), path.to_owned());
                    let version = held.get(&claim.entity_ref).and_then(|held| held.version.as_ref());
                    is_to_read |= version != Some(&claim.version);
                }
            }
        }
        if is_to_read {
            self.to_read.push(path.to_owned());
        }
    }

    pub(super) fn paths_to_read(&self) -> &[String] {
        &self.to_read
    }

    pub(super) fn belongs_to(&self, entity_ref: &EntityRef, path: &str) -> bool {
        // A ref that came into the file since it was scanned waits for the next scan.
        self.owners.get(entity_ref).is_some_and(|owner| owner == path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::Problem;
    use super::*;

    fn entity_ref(name: &str) -> EntityRef {
        EntityRef::parse(&format!("component:default/{name}")).expect("a ref")
    }

    fn good(path: &str, names: &[&str]) -> (String, FileState) {
        let claim = |name: &&str| Claim { entity_ref: entity_ref(name), uid: None, version: format!("{path}#1") };
        (path.to_owned(), FileState::of(Ok(names.iter().map(claim).collect())))
    }

    fn broken(path: &str) -> (String, FileState) {
        (path.to_owned(), FileState::of(Err(Problem { line: Some(1), reason: "broken".to_owned() })))
    }

    fn held(entries: &[(&str, &str)]) -> BTreeMap<EntityRef, Held> {
        entries.iter().map(|(name, version)| (entity_ref(name), Held::new((*version).to_owned()))).collect()
    }

    #[test]
    fn what_changed_is_read_and_what_went_is_removed() {
        let files = BTreeMap::from([good("a.yaml", &["a", "b"]), good("c.yaml", &["c"])]);

        let plan =
            Plan::new(&files, &held(&[("a", "a.yaml#1"), ("b", "a.yaml#0"), ("c", "c.yaml#1"), ("d", "d.yaml#1")]));

        assert_eq!(plan.paths_to_read(), ["a.yaml"]);
        assert_eq!(plan.removals, [entity_ref("d")]);
        assert!(plan.conflicts.is_empty());
    }

    #[test]
    fn an_invalid_file_keeps_its_last_good_entities() {
        let files = BTreeMap::from([broken("a.yaml"), good("b.yaml", &["a", "b"])]);

        let plan = Plan::new(&files, &held(&[("a", "a.yaml#1"), ("x", "a.yaml#1"), ("b", "b.yaml#1")]));

        assert!(plan.removals.is_empty() && plan.paths_to_read().is_empty());
        assert_eq!(plan.conflicts.len(), 1);
        assert!(plan.belongs_to(&entity_ref("a"), "a.yaml"));
    }

    #[test]
    fn a_ref_in_two_files_belongs_to_the_first_by_path() {
        let files = BTreeMap::from([good("b.yaml", &["a"]), good("a.yaml", &["a"])]);

        let plan = Plan::new(&files, &BTreeMap::new());

        assert!(plan.belongs_to(&entity_ref("a"), "a.yaml") && !plan.belongs_to(&entity_ref("a"), "b.yaml"));
        assert_eq!(plan.paths_to_read(), ["a.yaml"]);
        assert_eq!(plan.conflicts[0].left_out, "b.yaml");
    }

    #[test]
    fn a_refused_ref_is_stated_again_and_cleared_when_it_goes() {
        let refused = BTreeMap::from([(entity_ref("a"), Held::rejected())]);

        assert_eq!(Plan::new(&BTreeMap::from([good("a.yaml", &["a"])]), &refused).paths_to_read(), ["a.yaml"]);
        assert_eq!(Plan::new(&BTreeMap::new(), &refused).removals, [entity_ref("a")]);
    }
}
