//! The statements that read the same way in both stores. Each store binds and decodes them itself.

// Predecessors are looked up by scalar subqueries: joined, a planner may choose to merge whole ranges of bodies.

/// Events `e` with the bodies of their predecessors that lie at or below `$1`. Inside a page a predecessor is in the page.
macro_rules! event_query {
    ($rest:literal) => {
        concat!(
            "select e.event_offset, e.type, e.entity_ref, e.uid, e.entity, e.changed, e.occurred_at, e.recorded_at, ",
            "e.cause, e.previous_offset, ",
            "(select p.entity from events p where p.event_offset = e.previous_offset and p.event_offset <= $1) ",
            "as previous_entity ",
            "from events e ",
            $rest
        )
    };
}

/// Sizes before bodies: after `$1`, at most `$2` rows.
pub(super) const READ_SIZES: &str = "
select
    e.event_offset,
    e.entity_bytes
        + coalesce((select p.entity_bytes from events p where p.event_offset = e.previous_offset), 0) as bytes
from events e
where e.event_offset > $1
order by e.event_offset
limit $2";

/// After `$1` up to `$2`.
pub(super) const READ: &str =
    event_query!("where e.event_offset > $1 and e.event_offset <= $2 order by e.event_offset");

/// The event at `$1`.
pub(super) const EVENT: &str = event_query!("where e.event_offset = $1");

/// An entity's last event at or below `$1`; `$2` is the ref.
pub(super) const LATEST: &str =
    event_query!("where e.entity_ref = $2 and e.event_offset <= $1 order by e.event_offset desc limit 1");

/// Sizes before bodies of an entity's (`$2`) events before `$1`, newest first, at most `$3` rows.
pub(super) const HISTORY_SIZES: &str = "
select
    e.event_offset,
    e.entity_bytes
        + coalesce((select p.entity_bytes from events p where p.event_offset = e.previous_offset), 0) as bytes
from events e
where e.event_offset < $1 and e.entity_ref = $2
order by e.event_offset desc
limit $3";

/// An entity's (`$2`) events before `$1` down to `$3`, newest first.
pub(super) const HISTORY: &str = event_query!(
    "where e.event_offset < $1 and e.entity_ref = $2 and e.event_offset >= $3 order by e.event_offset desc"
);

/// The next refs after `$2`, at most `$3`, each with its last event at or below `$1`, if there is one. From ref to ref it
/// jumps through the index (entity_ref, event_offset), so that long histories cost nothing.
pub(super) const STATE_REFS: &str = "
with recursive refs (entity_ref, number) as (
    select min(entity_ref), 1 from events where entity_ref > $2
    union all
    select (select min(e.entity_ref) from events e where e.entity_ref > refs.entity_ref), refs.number + 1
    from refs
    where refs.entity_ref is not null and refs.number < $3
)
select
    refs.entity_ref,
    (select max(e.event_offset) from events e where e.entity_ref = refs.entity_ref and e.event_offset <= $1)
        as event_offset
from refs
where refs.entity_ref is not null
order by refs.entity_ref";

/// The next `$3` events after `$1` up to `$2` end at this offset: walks go on in steps of bounded cost.
pub(super) const WALK_STEP: &str = "
select max(event_offset) as event_offset
from (
    select event_offset from events where event_offset > $1 and event_offset <= $2 order by event_offset limit $3
) step";

/// Sizes before bodies of a walk's step: events after `$1` up to `$2` that are their entity's last event at or below `$3`;
/// removals only above `$4`; at most `$5` rows.
pub(super) const WALK_SIZES: &str = "
select
    e.event_offset,
    e.entity_bytes + case e.type
        when 'removed' then coalesce((select p.entity_bytes from events p where p.event_offset = e.previous_offset), 0)
        else 0
    end as bytes
from events e
where e.event_offset > $1 and e.event_offset <= $2
    and (e.type <> 'removed' or e.event_offset > $4)
    and not exists (
        select 1 from events n
        where n.entity_ref = e.entity_ref and n.event_offset > e.event_offset and n.event_offset <= $3
    )
order by e.event_offset
limit $5";

/// What the log holds of the source `$1`, after the ref `$2`, at most `$3` rows.
pub(super) const HELD: &str = "
select entity_ref, uid, source_version, source_position
from entities
where source = $1 and entity_ref > $2
order by entity_ref
limit $3";

/// How many entities of the source `$1`.
pub(super) const HELD_COUNT: &str = "select count(*) as count from entities where source = $1";

/// What could not be taken from the source `$1`, after the ref `$2`, at most `$3` rows.
pub(super) const REJECTED: &str = "
select entity_ref, reason, source_version, source_position
from rejected
where source = $1 and entity_ref > $2
order by entity_ref
limit $3";

/// How many refs of the source `$1` are rejected.
pub(super) const REJECTED_COUNT: &str = "select count(*) as count from rejected where source = $1";
