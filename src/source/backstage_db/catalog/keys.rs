//! What rows are compared by, and whether they are there.

use std::collections::HashSet;

use sqlx::postgres::PgRow;

use super::Catalog;
use crate::source::owner::SourceError;

/// By key range in the column's own collation, which is the one that its index has. No order of ours is compared with it.
const KEYS: &str = "\
select entity_ref::text, entity_id::text, hash::text, clock_timestamp() - statement_timestamp()
from final_entities
where ($1::text is null or entity_ref > $1) and final_entity is not null
order by entity_ref
limit $2";

/// Without the rows that come by pages: those numbered after a generation. A number above the counter, which a person has
/// set back, comes by no page.
const KEYS_UP_TO: &str = "\
select entity_ref::text, entity_id::text, hash::text, clock_timestamp() - statement_timestamp()
from final_entities
where ($1::text is null or entity_ref > $1) and final_entity is not null
  and (generation is null or generation <= $3 or generation > $4)
order by entity_ref
limit $2";

const KEYS_RECENT: &str = "\
select entity_ref::text, entity_id::text, hash::text, generation
from final_entities
where generation > $1 and generation <= $2 and final_entity is not null
order by generation
limit $3";

/// A collation may hold different texts for equal, so the answer is compared byte by byte by the caller.
const PRESENT: &str = "\
select coalesce(array_agg(entity_ref::text), '{}'), clock_timestamp() - statement_timestamp()
from final_entities
where entity_ref = any($1) and final_entity is not null";

/// What a row is compared by.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) entity_ref: String,
    pub(crate) entity_id: String,
    pub(crate) hash: String,
}

impl Catalog {
    /// The keys after a ref, in the catalog's own order; by generations without those that come by pages after `read_to`.
    pub(crate) async fn keys(
        &mut self,
        after: Option<&str>,
        read_to: i64,
        limit: i64,
    ) -> Result<Vec<Key>, SourceError> {
        let query = match self.begin().await? {
            Some(counter) => sqlx::query(KEYS_UP_TO).bind(after).bind(limit).bind(read_to).bind(counter),
            None => sqlx::query(KEYS).bind(after).bind(limit),
        };
        let rows = self.all("compare entities", query).await?;
        self.commit().await?;
        if let Some(last) = rows.last() {
            self.note(KEYS, rows.len() as i64, last, 3)?;
        }
        rows.iter().map(|row| self.key(row)).collect()
    }

    /// The keys of a range of generations, with the last generation read.
    pub(crate) async fn recent_keys(
        &mut self,
        after: i64,
        up_to: i64,
        limit: i64,
    ) -> Result<(Vec<Key>, Option<i64>), SourceError> {
        self.begin().await?;
        let query = sqlx::query(KEYS_RECENT).bind(after).bind(up_to).bind(limit);
        let rows = self.all("compare recent changes", query).await?;
        self.commit().await?;
        let last = rows.last().map(|row| self.get(row, 3)).transpose()?;
        Ok((rows.iter().map(|row| self.key(row)).collect::<Result<_, _>>()?, last))
    }

    /// Which of these refs the catalog holds, byte for byte, or are still to be read from the outbox.
    pub(crate) async fn present(&mut self, refs: &[&str]) -> Result<HashSet<String>, SourceError> {
        self.begin().await?;
        let row = self.one("look refs up", sqlx::query(PRESENT).bind(refs)).await?;
        let mut present = self.undrained(refs).await?;
        self.commit().await?;
        self.note(PRESENT, refs.len() as i64, &row, 1)?;
        present.extend(self.get::<Vec<String>>(&row, 0)?);
        Ok(present)
    }

    fn key(&self, row: &PgRow) -> Result<Key, SourceError> {
        Ok(Key { entity_ref: self.get(row, 0)?, entity_id: self.get(row, 1)?, hash: self.get(row, 2)? })
    }
}
