//! The rows after a generation, page by page.

use super::Catalog;
use super::census::{Census, CensusKind};
use super::rows::{Row, bound_bytes};
use crate::source::entity::ENTITY_BYTES_MAX;
use crate::source::owner::SourceError;

/// The lengths of a page before its bodies: `octet_length` does not read what is stored out of line.
const PAGE: &str = "\
select entity_ref::text, entity_id::text, hash::text, generation, last_updated_at, octet_length(final_entity)
from final_entities
where generation > $1
order by generation
limit $2";

const PAGE_BODIES: &str = "\
select entity_ref::text, final_entity
from final_entities
where generation > $1 and generation <= $2 and octet_length(final_entity) <= $3";

/// Rows of one snapshot after a generation.
#[derive(Debug)]
pub(crate) struct Page {
    /// The counter in the same snapshot.
    pub(crate) counter: i64,
    /// In the order of their generations.
    pub(crate) rows: Vec<Row>,
    /// There are more.
    pub(crate) is_full: bool,
    /// What the snapshot holds in all, if asked for.
    pub(crate) census: Option<Census>,
}

/// Bounds of a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageLimits {
    pub(crate) rows: i64,
    pub(crate) bytes: usize,
}

impl Catalog {
    /// The rows after a generation, bounded, with the counter and the census of the same snapshot.
    pub(crate) async fn page(
        &mut self,
        after: i64,
        limits: PageLimits,
        census: CensusKind,
    ) -> Result<Page, SourceError> {
        let counter = self
            .begin()
            .await?
            .ok_or_else(|| SourceError::Reopen("the row of catalog_generation_counter is gone".to_owned()))?;
        let mut page = Page { counter, rows: Vec::new(), is_full: false, census: None };
        if counter > after {
            let heads = self.all("read changes", sqlx::query(PAGE).bind(after).bind(limits.rows)).await?;
            page.is_full = heads.len() as i64 >= limits.rows;
            page.rows = self.heads(&heads)?;
            page.is_full |= bound_bytes(&mut page.rows, limits.bytes, |row| &row.body);
            if let Some(last) = page.rows.last().and_then(|row| row.generation) {
                let bodies = sqlx::query(PAGE_BODIES).bind(after).bind(last).bind(ENTITY_BYTES_MAX as i32);
                let bodies = self.all("read entities", bodies).await?;
                self.fill(&mut page.rows, &bodies)?;
            }
        }
        page.census = self.census(census).await?;
        self.commit().await?;
        Ok(page)
    }
}
