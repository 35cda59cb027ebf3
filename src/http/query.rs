use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use catalog_bridge_api::{EventType, Offset};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::problem::{Kind, Problem};
use crate::filter::{Changes, Filter};

/// A query parameter that a route knows; the OpenAPI document tells the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) form: Form,
}

/// What a parameter's value looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    Text,
    /// May stand there several times.
    Texts,
    Number {
        min: u64,
        max: u64,
        default: Option<u64>,
    },
    Flag,
}

/// Largest number of an offset: what both stores can keep.
pub(super) const OFFSET_MAX: u64 = i64::MAX as u64;

impl Param {
    /// Its JSON Schema.
    pub(super) fn schema(&self) -> Value {
        match self.form {
            Form::Text => json!({ "type": "string" }),
            Form::Texts => json!({ "type": "array", "items": { "type": "string" } }),
            Form::Flag => json!({ "type": "boolean", "default": false }),
            Form::Number { min, max, default: Some(default) } => {
                json!({ "type": "integer", "minimum": min, "maximum": max, "default": default })
            }
            Form::Number { min, max, default: None } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        }
    }
}

/// A query whose parameters are all known to the route, and stand there once but where they may repeat.
#[derive(Debug)]
pub(super) struct Query {
    params: &'static [Param],
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(super) fn parse(raw: Option<&str>, params: &'static [Param]) -> Result<Query, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(raw.unwrap_or_default().as_bytes()) {
            let Some(param) = params.iter().find(|param| param.name == name) else {
                return Err(unknown(&name, params));
            };
            if !matches!(param.form, Form::Texts) && pairs.iter().any(|(known, _)| *known == name) {
                return Err(Problem::of_field(
                    Kind::InvalidParameter,
                    &name,
                    format!("{name} stands there more than once; give it once"),
                ));
            }
            pairs.push((name.into_owned(), value.into_owned()));
        }
        Ok(Query { params, pairs })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.pairs.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// A number within the parameter's bounds, or its default.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<u64>, Problem> {
        let form = self.params.iter().find(|param| param.name == name).map(|param| param.form);
        let Some(Form::Number { min, max, default }) = form else { return Ok(None) };
        let Some(text) = self.text(name) else { return Ok(default) };
        let number = parse_digits(text).filter(|number| (min..=max).contains(number));
        number.map(Some).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Problem::of_field(
                Kind::InvalidParameter,
                name,
                format!("{name} is \"{shown}\"; write a whole number from {min} to {max}"),
            )
        })
    }

    /// A number that has a default.
    pub(super) fn size(&self, name: &'static str) -> Result<usize, Problem> {
        Ok(self.number(name)?.and_then(|number| usize::try_from(number).ok()).unwrap_or_default())
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => {
                Err(Problem::of_field(Kind::InvalidParameter, name, format!("{name} is neither true nor false")))
            }
        }
    }

    pub(super) fn filter(&self) -> Result<Option<Filter>, Problem> {
        let texts = self.texts("filter");
        if texts.is_empty() {
            return Ok(None);
        }
        Filter::parse(&texts)
            .map(Some)
            .map_err(|error| Problem::of_field(Kind::InvalidParameter, "filter", error.to_string()))
    }

    pub(super) fn changes(&self) -> Result<Changes, Problem> {
        let texts = self.texts("changes").join(",");
        let is_given = self.text("changes").is_some();
        let changes = Changes::parse(&texts);
        if !is_given || changes != Changes::All || texts == "all" {
            return Ok(changes);
        }
        let detail = "changes is empty; write all, content, or paths such as spec.owner,spec.type";
        Err(Problem::of_field(Kind::InvalidParameter, "changes", detail))
    }

    pub(super) fn types(&self) -> Result<Vec<EventType>, Problem> {
        let mut types = Vec::new();
        for text in self.texts("type").iter().flat_map(|text| text.split(',')).map(str::trim) {
            let Some(known) = EventType::parse(text) else {
                let shown: String = text.chars().take(40).collect();
                let detail = format!("type is \"{shown}\"; write added, updated or removed");
                return Err(Problem::of_field(Kind::InvalidParameter, "type", detail));
            };
            types.push(known);
        }
        Ok(types)
    }
}

/// The path's own segments, decoded.
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Segments(segments)),
            Err(_) => {
                let detail = "the path is no UTF-8 once its %-escapes are read; escape each segment as UTF-8";
                Err(Problem::of_field(Kind::InvalidParameter, "path", detail))
            }
        }
    }
}

/// An offset from a path or query.
pub(super) fn parse_offset(field: &str, text: &str) -> Result<Offset, Problem> {
    parse_digits(text).filter(|number| *number <= OFFSET_MAX).map(Offset::new).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        let detail = format!("{field} is \"{shown}\"; write a whole number from 0 to {OFFSET_MAX}");
        Problem::of_field(Kind::InvalidParameter, field, detail)
    })
}

/// Digits only: Rust's own parser also takes a sign.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn unknown(name: &str, params: &'static [Param]) -> Problem {
    let shown: String = name.chars().take(60).collect();
    let nearest = params
        .iter()
        .map(|param| (strsim::jaro_winkler(param.name, &shown.to_lowercase()), param.name))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let detail = match (nearest, params) {
        (Some((_, nearest)), _) => format!("there is no parameter \"{shown}\" here; did you mean {nearest}?"),
        (None, []) => format!("there is no parameter \"{shown}\" here; this route takes none"),
        (None, params) => {
            let known = params.iter().map(|param| param.name).collect::<Vec<_>>().join(", ");
            format!("there is no parameter \"{shown}\" here; known are {known}")
        }
    };
    let problem = Problem::of_field(Kind::UnknownParameter, &shown, detail);
    match nearest {
        Some((_, nearest)) => problem.with("nearest", nearest),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: &[Param] = &[
        Param { name: "offset", about: "", form: Form::Text },
        Param { name: "limit", about: "", form: Form::Number { min: 1, max: 1000, default: Some(100) } },
        Param { name: "filter", about: "", form: Form::Texts },
        Param { name: "changes", about: "", form: Form::Texts },
    ];

    fn refused<T: std::fmt::Debug>(result: Result<T, Problem>) -> (Kind, String) {
        let problem = result.expect_err("must be refused");
        (problem.kind(), problem.detail().to_owned())
    }

    #[test]
    fn numbers_keep_their_bounds() {
        let limit = |raw: &str| Query::parse(Some(raw), PARAMS).expect("known").size("limit");

        assert_eq!(limit("").expect("default"), 100);
        assert_eq!(limit("limit=1000").expect("largest"), 1000);
        for bad in ["0", "1001", "abc", "-1", "+1", "1.5", "", "99999999999999999999999"] {
            let (kind, detail) = refused(limit(&format!("limit={}", bad.replace('+', "%2B"))));
            assert_eq!(kind, Kind::InvalidParameter);
            assert_eq!(detail, format!("limit is \"{bad}\"; write a whole number from 1 to 1000"));
        }
    }

    #[test]
    fn offsets_are_whole_numbers() {
        assert_eq!(parse_offset("offset", "0").expect("zero"), Offset::ZERO);
        assert_eq!(parse_offset("offset", "9223372036854775807").expect("largest"), Offset::new(OFFSET_MAX));
        for bad in ["-1", "+1", "1.0", "1e3", "", "abc", "9223372036854775808", "99999999999999999999999999"] {
            assert_eq!(refused(parse_offset("offset", bad)).0, Kind::InvalidParameter, "{bad}");
        }
    }

    #[test]
    fn unknown_parameters_name_the_nearest() {
        let check = |raw: &str, expected: &str| {
            assert_eq!(refused(Query::parse(Some(raw), PARAMS)), (Kind::UnknownParameter, expected.to_owned()));
        };

        check("ofset=3", "there is no parameter \"ofset\" here; did you mean offset?");
        check("filters=kind=a", "there is no parameter \"filters\" here; did you mean filter?");
        check("xyz=1", "there is no parameter \"xyz\" here; known are offset, limit, filter, changes");
    }

    #[test]
    fn only_lists_repeat() {
        assert!(Query::parse(Some("filter=a&filter=b"), PARAMS).is_ok());
        assert_eq!(refused(Query::parse(Some("limit=1&limit=2"), PARAMS)).0, Kind::InvalidParameter);
    }

    #[test]
    fn an_empty_filter_or_changes_is_refused() {
        let query = |raw: &str| Query::parse(Some(raw), PARAMS).expect("known");

        assert_eq!(refused(query("filter=").filter()).0, Kind::InvalidParameter);
        assert_eq!(refused(query("changes=").changes()).0, Kind::InvalidParameter);
        assert_eq!(query("changes=all").changes().expect("all"), Changes::All);
        assert_eq!(query("").changes().expect("absent"), Changes::All);
        assert_eq!(
            query("changes=spec.owner&changes=spec.type").changes().expect("paths").to_string(),
            "spec.owner,spec.type"
        );
    }
}
