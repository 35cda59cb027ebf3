//! How many rows there are, and which have no body.

use std::collections::HashSet;
use std::time::Duration;

use super::Catalog;
use crate::source::backstage_db::position::Way;
use crate::source::owner::SourceError;

/// Rows without a body count too: leaving them out would read the table instead of an index, and cost five times as much.
///
/// Looks that are repeated tell last how long the server worked on them: its clock at the end without that at the beginning.
pub(super) const CENSUS: &str = "\
select count(*), null::text, clock_timestamp() - statement_timestamp()
from final_entities";

const CENSUS_WITH_SUM: &str = "\
select
  count(*), coalesce(sum(hashtextextended(entity_ref collate \"C\", 0)), 0)::text,
  clock_timestamp() - statement_timestamp()
from final_entities";

const BUCKETS: &str = "\
select ((hash >> 56) & 255)::int4, count(*), sum(hash)::text, clock_timestamp() - statement_timestamp()
from (
  select hashtextextended(entity_ref collate \"C\", 0) as hash
  from final_entities
) as hashes
group by 1";

/// Without generations nothing tells which rows have no body, so they are left out, whatever it costs.
const BUCKETS_WITH_BODY: &str = "\
select ((hash >> 56) & 255)::int4, count(*), sum(hash)::text, clock_timestamp() - statement_timestamp()
from (
  select hashtextextended(entity_ref collate \"C\", 0) as hash
  from final_entities
  where final_entity is not null
) as hashes
group by 1";

const BODILESS: &str = "\
select entity_ref::text
from final_entities
where final_entity is null
limit $1";

const STILL_BODILESS: &str = "\
select entity_ref::text
from final_entities
where entity_ref = any($1) and final_entity is null";

/// How many rows a snapshot holds, with and without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) count: i64,
    /// The sum of the ref hashes, if asked for.
    pub(crate) sum: Option<i128>,
    /// What it cost the database.
    pub(crate) cost: Duration,
}

/// Which census is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CensusKind {
    None,
    Count,
    Sum,
}

/// Count and sum of hashes per highest byte of the hash.
pub(crate) type Buckets = [(i64, i128); 256];

impl Catalog {
    pub(super) async fn census(&mut self, kind: CensusKind) -> Result<Option<Census>, SourceError> {
        let sql = match kind {
            CensusKind::None => return Ok(None),
            CensusKind::Count => CENSUS,
            CensusKind::Sum => CENSUS_WITH_SUM,
        };
        let row = self.one("count entities", sqlx::query(sql)).await?;
        let (count, sum) = (self.get(&row, 0)?, self.get::<Option<String>>(&row, 1)?);
        let cost = self.note(sql, count, &row, 2)?;
        Ok(Some(Census { count, sum: sum.and_then(|sum| sum.parse().ok()), cost }))
    }

    /// The refs of rows without a body, at most so many.
    pub(crate) async fn bodiless(&mut self, limit: i64) -> Result<Vec<String>, SourceError> {
        self.begin().await?;
        let rows = self.all("look for rows without a body", sqlx::query(BODILESS).bind(limit)).await?;
        self.commit().await?;
        rows.iter().map(|row| self.get(row, 0)).collect()
    }

    /// Which of these rows are there, still without a body.
    pub(crate) async fn still_bodiless(&mut self, refs: &[&str]) -> Result<HashSet<String>, SourceError> {
        self.begin().await?;
        let rows = self.all("look for rows without a body", sqlx::query(STILL_BODILESS).bind(refs)).await?;
        self.commit().await?;
        rows.iter().map(|row| self.get(row, 0)).collect()
    }

    /// Count and sum of the ref hashes per bucket: by generations of all rows, else of those with a body.
    pub(crate) async fn buckets(&mut self) -> Result<Box<Buckets>, SourceError> {
        let sql = match self.way {
            Way::Generations => BUCKETS,
            Way::Triggers | Way::Reconcile => BUCKETS_WITH_BODY,
        };
        self.begin().await?;
        let rows = self.all("compare refs", sqlx::query(sql)).await?;
        self.commit().await?;
        let mut buckets = Box::new([(0, 0); 256]);
        let mut count = 0;
        for row in &rows {
            count += self.get::<i64>(row, 1)?;
            let index = usize::try_from(self.get::<i32>(row, 0)?).unwrap_or_default();
            let sum = self.get::<String>(row, 2)?.parse().unwrap_or_default();
            if let Some(bucket) = buckets.get_mut(index) {
                *bucket = (self.get(row, 1)?, sum);
            }
        }
        if let Some(last) = rows.last() {
            self.note(sql, count, last, 3)?;
        }
        Ok(buckets)
    }
}
