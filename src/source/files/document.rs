//! Reads the documents of one YAML file as entities.
//!
//! Pure. Deterministic: the same YAML gives the same JSON text. Hostile input (deep nesting, alias bombs) is an error.

use catalog_bridge_api::JsonText;
use serde_json::Value;
use serde_saphyr::Spanned;
use sha2::{Digest, Sha256};

use super::plan::Claim;
use crate::source::entity::{ENTITY_DEPTH_MAX, parse_entity};

/// Why a file is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Counted from 1, where known.
    pub(super) line: Option<u64>,
    /// For a person.
    pub(super) reason: String,
}

/// Most documents of a file.
const DOCUMENTS_MAX: usize = 10_000;

/// The YAML parser is recursive, and its frames are large: this much is enough for the deepest document allowed.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// All entities of a file, in its order, or why it is invalid as a whole.
pub(super) fn parse_documents(path: &str, text: &str) -> Result<Vec<(Claim, JsonText)>, Problem> {
    let lost = |reason: String| Problem { line: None, reason };
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || parse(path, text));
        let parser = parser.map_err(|error| lost(format!("no thread to parse it: {error}")))?;
        parser.join().unwrap_or_else(|_| Err(lost("the YAML parser failed on it; please report this".to_owned())))
    })
}

fn parse(path: &str, text: &str) -> Result<Vec<(Claim, JsonText)>, Problem> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: ENTITY_DEPTH_MAX, max_documents: DOCUMENTS_MAX },
        strict_booleans: true,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let reason = error.to_string();
        Problem { line, reason: reason.lines().next().unwrap_or("invalid YAML").to_owned() }
    })?;
    let mut entities: Vec<(Claim, JsonText)> = Vec::with_capacity(documents.len());
    for document in documents {
        let problem = |reason: String| Problem { line: Some(document.referenced.line()), reason };
        let text = serde_json::to_string(&document.value).map_err(|error| problem(error.to_string()))?;
        let parsed = parse_entity(&text).map_err(|error| problem(error.to_string()))?;
        if entities.iter().any(|(claim, _)| claim.entity_ref == parsed.entity_ref) {
            return Err(problem(format!("{} stands twice in this file", parsed.entity_ref)));
        }
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let version = format!("{path}#{}", hex(&digest[..16]));
        entities.push((Claim { entity_ref: parsed.entity_ref, uid: parsed.uid, version }, parsed.entity));
    }
    Ok(entities)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
# a comment
apiVersion: backstage.io/v1alpha1
kind: Component
metadata:
  name: Petstore
spec:
  owner: team-a
  on: 'yes'
  lifecycle: yes
  since: 2020-01-01
  ratio: 1.50
---
---
kind: Group
metadata: { name: team-a, namespace: org }
";

    fn refused(text: &str) -> Problem {
        parse_documents("a.yaml", text).expect_err("must be invalid")
    }

    #[test]
    fn documents_become_entities() {
        let entities = parse_documents("a.yaml", TWO).expect("two entities");

        let refs: Vec<&str> = entities.iter().map(|(claim, _)| claim.entity_ref.as_str()).collect();
        assert_eq!(refs, ["component:default/petstore", "group:org/team-a"]);
        let json: Value = serde_json::from_str(entities[0].1.as_str()).expect("JSON");
        assert_eq!(json["spec"]["lifecycle"], "yes");
        assert_eq!(json["spec"]["since"], "2020-01-01");
        assert_eq!(json["metadata"]["name"], "Petstore");
    }

    #[test]
    fn the_same_text_has_the_same_version_and_another_has_another() {
        let version = |text: &str| parse_documents("a.yaml", text).expect("entities")[0].0.version.clone();

        assert_eq!(version(TWO), version(TWO));
        assert_ne!(version(TWO), version(&TWO.replace("team-a", "team-b")));
        assert!(version(TWO).starts_with("a.yaml#"));
    }

    #[test]
    fn a_problem_names_its_line() {
        let missing = refused("kind: A\nmetadata: { name: a }\n---\nkind: B\nmetadata: {}\n");
        assert_eq!(missing.line, Some(4));
        assert!(missing.reason.contains("metadata.name"), "{}", missing.reason);
        let broken = refused("kind: A\nmetadata:\n  name: [a\n");
        assert!(broken.line.is_some_and(|line| line >= 3), "{broken:?}");
        let twice = refused("kind: A\nmetadata: { name: a }\n---\nkind: a\nmetadata: { name: A }\n");
        assert!(twice.reason.contains("stands twice"), "{}", twice.reason);
    }

    #[test]
    fn hostile_input_is_an_error() {
        refused(&"[".repeat(100_000));
        refused(&format!("kind: A\nmetadata: {{name: a}}\nspec: {}{}\n", "[".repeat(200), "]".repeat(200)));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(",")));
        }
        refused(&bomb);
    }

    #[test]
    fn an_empty_file_has_no_entities() {
        assert!(parse_documents("a.yaml", "").expect("empty").is_empty());
        assert!(parse_documents("a.yaml", "# only this\n").expect("empty").is_empty());
    }
}
