//! Rows with their bodies, which are never read before their lengths.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::Catalog;
use super::census::CENSUS;
use crate::source::backstage_db::position::Way;
use crate::source::entity::ENTITY_BYTES_MAX;
use crate::source::owner::SourceError;

const BY_REF: &str = "\
select entity_ref::text, entity_id::text, hash::text, null::int8, last_updated_at, octet_length(final_entity)
from final_entities
where entity_ref = any($1) and final_entity is not null";

const BY_REF_WITH_GENERATION: &str = "\
select entity_ref::text, entity_id::text, hash::text, generation, last_updated_at, octet_length(final_entity)
from final_entities
where entity_ref = any($1) and final_entity is not null";

const BY_REF_BODIES: &str = "\
select entity_ref::text, final_entity
from final_entities
where entity_ref = any($1) and octet_length(final_entity) <= $2";

const LARGER_THAN: &str = "\
select entity_ref::text
from final_entities
where octet_length(final_entity) > $1 and octet_length(final_entity) <= $2
order by entity_ref
limit 100";

/// One row of `final_entities`.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) entity_ref: String,
    pub(crate) entity_id: String,
    pub(crate) hash: String,
    pub(crate) generation: Option<i64>,
    pub(crate) updated_at: Option<DateTime<Utc>>,
    pub(crate) body: Body,
}

/// The JSON of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// NULL: the catalog shows no such entity.
    Absent,
    /// Not read, as the log could not take it.
    TooLarge(usize),
    /// The text.
    Text(String),
}

impl Catalog {
    /// The rows of some of these refs, as many as the bytes allow, and the refs that are left for another call. A ref that
    /// the catalog does not hold is in neither, nor one whose row comes by a page after `read_to`.
    pub(crate) async fn by_ref(
        &mut self,
        refs: &[String],
        read_to: i64,
        bytes_max: usize,
    ) -> Result<(Vec<Row>, Vec<String>), SourceError> {
        let sql = if self.way == Way::Generations { BY_REF_WITH_GENERATION } else { BY_REF };
        let counter = self.begin().await?.unwrap_or(read_to);
        let heads = self.all("read entities by ref", sqlx::query(sql).bind(refs)).await?;
        let mut rows = self.heads(&heads)?;
        let asked: HashSet<&str> = refs.iter().map(String::as_str).collect();
        let refs: Vec<&str> = refs.iter().map(String::as_str).collect();
        let undrained = self.undrained(&refs).await?;
        let comes_by_page = |row: &Row| {
            row.generation.is_some_and(|number| number > read_to && number <= counter)
                || undrained.contains(&row.entity_ref)
        };
        rows.retain(|row| asked.contains(row.entity_ref.as_str()) && !comes_by_page(row));
        let found: Vec<String> = rows.iter().map(|row| row.entity_ref.clone()).collect();
        bound_bytes(&mut rows, bytes_max, |row| &row.body);
        let (now, left) = found.split_at(rows.len());
        let bodies = sqlx::query(BY_REF_BODIES).bind(now).bind(ENTITY_BYTES_MAX as i32);
        let bodies = self.all("read entities by ref", bodies).await?;
        self.commit().await?;
        self.fill(&mut rows, &bodies)?;
        Ok((rows, left.to_vec()))
    }

    pub(super) fn heads(&self, rows: &[PgRow]) -> Result<Vec<Row>, SourceError> {
        let head = |row: &PgRow| {
            let length: Option<i32> = self.get(row, 5)?;
            Ok(Row {
                entity_ref: self.get(row, 0)?,
                entity_id: self.get(row, 1)?,
                hash: self.get(row, 2)?,
                generation: self.get(row, 3)?,
                updated_at: self.get(row, 4)?,
                body: length.map_or(Body::Absent, |length| Body::TooLarge(usize::try_from(length).unwrap_or_default())),
            })
        };
        rows.iter().map(head).collect()
    }

    /// Puts the bodies to their rows; what has no body now is too large, or absent.
    pub(super) fn fill(&self, rows: &mut [Row], bodies: &[PgRow]) -> Result<(), SourceError> {
        let mut texts = HashMap::with_capacity(bodies.len());
        for body in bodies {
            texts.insert(self.get::<String>(body, 0)?, self.get::<String>(body, 1)?);
        }
        for row in rows {
            if let Some(text) = texts.remove(&row.entity_ref) {
                row.body = Body::Text(text);
            }
        }
        Ok(())
    }

    /// How many entities there are, and the refs of those above so many bytes, at most 100.
    pub(crate) async fn larger_than(&mut self, bytes: usize) -> Result<(u64, Vec<String>), SourceError> {
        self.begin_bare().await?;
        let row = self.one("count entities", sqlx::query(CENSUS)).await?;
        let present: i64 = self.get(&row, 0)?;
        let asked = i32::try_from(bytes).unwrap_or(i32::MAX);
        let refs = sqlx::query(LARGER_THAN).bind(asked).bind(ENTITY_BYTES_MAX as i32);
        let rows = self.all("look for large entities", refs).await?;
        self.send("end a transaction", "rollback".to_owned()).await?;
        Ok((present.unsigned_abs(), rows.iter().map(|row| self.get(row, 0)).collect::<Result<_, SourceError>>()?))
    }

    /// One entity's body, if it is there and the log could take it.
    pub(crate) async fn body(&mut self, entity_ref: &str) -> Result<Option<String>, SourceError> {
        self.begin_bare().await?;
        let query = sqlx::query(BY_REF_BODIES).bind(vec![entity_ref]).bind(ENTITY_BYTES_MAX as i32);
        let rows = self.all("read a large entity", query).await?;
        self.send("end a transaction", "rollback".to_owned()).await?;
        rows.first().map(|row| self.get(row, 1)).transpose()
    }
}

/// Cuts the rows off where their bodies exceed the bytes; keeps at least one. True when something was cut off.
pub(crate) fn bound_bytes<T>(rows: &mut Vec<T>, bytes_max: usize, body: impl Fn(&T) -> &Body) -> bool {
    let mut bytes = 0;
    let fits = |row: &T| {
        bytes += match body(row) {
            Body::TooLarge(length) if *length <= ENTITY_BYTES_MAX => *length,
            _ => 0,
        };
        bytes <= bytes_max
    };
    let count = rows.iter().map(fits).take_while(|fits| *fits).count().max(1).min(rows.len());
    let was_cut = count < rows.len();
    rows.truncate(count);
    was_cut
}
