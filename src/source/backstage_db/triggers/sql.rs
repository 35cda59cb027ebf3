//! The statements that make the outbox and its triggers, and those that take them away.
//!
//! The same text is carried out by `source install` and printed for a DBA. It can be run again at any time.

use std::time::Duration;

use crate::source::backstage_db::quote;

/// Where the triggers are and whose.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The bridge's role: it owns the outbox.
    pub(crate) role: String,
    /// The schema of the catalog's tables.
    pub(crate) catalog: String,
    /// The bridge's own schema.
    pub(crate) outbox: String,
    /// When the triggers fall silent if nobody drains.
    pub(crate) abandon_after: Duration,
}

/// The first line of the functions: what they write is read by releases that know this version.
const MARK: &str = "-- catalog-bridge outbox, version 1";
/// What is left where the triggers cannot be dropped.
const NO_OP: &str = "-- catalog-bridge outbox, uninstalled\nbegin\n  return null;\nend;";
/// Errors that are caught: `others` leaves the two named ones out.
const ANY_ERROR: &str = "others or query_canceled or assert_failure";

/// The triggers' names, which begin with the schema's, so that several bridges do not meet.
pub(crate) fn trigger_names(outbox: &str) -> [String; 3] {
    ["insert", "update", "delete"].map(|event| format!("{outbox}_{event}"))
}

/// Makes schema, tables and functions. Locks nothing of the catalog.
pub(crate) fn create_outbox(target: &Target) -> String {
    let (outbox, role) = (quote(&target.outbox), quote(&target.role));
    let seconds = target.abandon_after.as_secs();
    let [on_write, on_delete] = [("on_write", write_body(&target.outbox)), ("on_delete", delete_body(&target.outbox))]
        .map(|(name, body)| create_function(&target.outbox, name, &body));
    format!(
        "do $$ begin
  if not exists (select from pg_namespace where nspname = '{name}') then
    create schema {outbox} authorization {role};
  end if;
end $$;
create table if not exists {outbox}.outbox (
  id bigint generated always as identity primary key,
  xid xid8 not null,
  op \"char\" not null,
  entity_id text,
  entity_ref text not null,
  hash text,
  entity text,
  at timestamptz not null default clock_timestamp()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_threshold = -1);
create table if not exists {outbox}.gap (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  op text not null,
  entity_ref text,
  code text not null,
  message text not null
);
create table if not exists {outbox}.state (
  is_only boolean primary key default true check (is_only),
  drained_at timestamptz not null,
  abandon_after interval not null,
  cleaned pg_snapshot
);
create sequence if not exists {outbox}.lost;
insert into {outbox}.state (drained_at, abandon_after) values (now(), interval '{seconds} seconds')
on conflict (is_only) do update set drained_at = excluded.drained_at, abandon_after = excluded.abandon_after;
{on_write}{on_delete}alter table {outbox}.outbox owner to {role};
alter table {outbox}.gap owner to {role};
alter table {outbox}.state owner to {role};
alter sequence {outbox}.lost owner to {role};
alter function {outbox}.on_write() owner to {role};
alter function {outbox}.on_delete() owner to {role};
revoke all on function {outbox}.on_write(), {outbox}.on_delete() from public;
",
        name = target.outbox,
    )
}

/// Makes the triggers: waits for whoever writes the catalog's table, and others wait behind it meanwhile.
pub(crate) fn create_triggers(target: &Target) -> String {
    let (outbox, table) = (quote(&target.outbox), format!("{}.final_entities", quote(&target.catalog)));
    let [insert, update, delete] = trigger_names(&target.outbox).map(|name| quote(&name));
    format!(
        "create or replace trigger {insert}
after insert on {table}
for each row when (new.final_entity is not null)
execute function {outbox}.on_write();
create or replace trigger {update}
after update of entity_id, entity_ref, hash, final_entity on {table}
for each row when (
  (new.final_entity is not null
    and (old.hash, old.final_entity is null, old.entity_ref, old.entity_id)
      is distinct from (new.hash, false, new.entity_ref, new.entity_id))
  or (new.final_entity is null and old.final_entity is not null))
execute function {outbox}.on_write();
create or replace trigger {delete}
after delete on {table}
referencing old table as gone
for each statement
execute function {outbox}.on_delete();
"
    )
}

/// Makes the triggers do nothing, whoever owns the catalog's table. Locks nothing.
pub(crate) fn silence(outbox: &str) -> String {
    ["on_write", "on_delete"].map(|name| create_function(outbox, name, NO_OP)).concat()
}

/// Drops the triggers by their functions, which needs no right on the catalog's table, and all the rest.
pub(crate) fn drop_all(outbox: &str) -> String {
    format!("drop schema {} cascade;\n", quote(outbox))
}

/// The whole of it, for a DBA.
pub(crate) fn install_script(target: &Target) -> String {
    format!(
        "-- Run as the owner of the catalog's database, or as a superuser. It can be run again at any time; when it fails by a\n\
         -- lock_timeout, nothing was waited for any longer and nothing was done: run it again.\n\
         begin;\n{}commit;\n\
         begin;\nset local lock_timeout = '500ms';\n{}commit;\n",
        create_outbox(target),
        create_triggers(target)
    )
}

/// The same for taking it away.
pub(crate) fn uninstall_script(outbox: &str) -> String {
    format!(
        "-- First the triggers do nothing, then they are dropped. When the second part fails by a lock_timeout, run it again.\n\
         begin;\n{}commit;\n\
         begin;\nset local lock_timeout = '500ms';\n{}commit;\n",
        silence(outbox),
        drop_all(outbox)
    )
}

/// The body of the row triggers' function, as the catalog stores it.
pub(crate) fn write_body(outbox: &str) -> String {
    let schema = quote(outbox);
    body(
        outbox,
        "new.entity_ref",
        &format!(
            "  if tg_op = 'UPDATE' then
    if old.final_entity is not null and (new.final_entity is null or new.entity_ref <> old.entity_ref) then
      insert into {schema}.outbox (xid, op, entity_id, entity_ref)
      select pg_current_xact_id(), 'r', old.entity_id, old.entity_ref
      from {schema}.state
      where state.drained_at > now() - state.abandon_after;
    end if;
  end if;
  if new.final_entity is not null then
    insert into {schema}.outbox (xid, op, entity_id, entity_ref, hash, entity)
    select pg_current_xact_id(), 'u', new.entity_id, new.entity_ref, new.hash, new.final_entity
    from {schema}.state
    where state.drained_at > now() - state.abandon_after;
  end if;
"
        ),
    )
}

/// The body of the statement trigger's function.
pub(crate) fn delete_body(outbox: &str) -> String {
    let schema = quote(outbox);
    body(
        outbox,
        "null",
        &format!(
            "  insert into {schema}.outbox (xid, op, entity_id, entity_ref)
  select pg_current_xact_id(), 'r', gone.entity_id, gone.entity_ref
  from gone, {schema}.state
  where gone.final_entity is not null and state.drained_at > now() - state.abandon_after;
"
        ),
    )
}

/// The guard around what a function does. After a failure the transaction's other changes are not tried: they would each wait
/// for the same lock, and everything is compared anyway. What is undone to a savepoint undoes that mark too.
fn body(outbox: &str, entity_ref: &str, work: &str) -> String {
    let schema = quote(outbox);
    format!(
        "{MARK}
begin
  if current_setting('{outbox}.failed', true) = 'on' then
    return null;
  end if;
{work}  return null;
exception when {ANY_ERROR} then
  begin
    perform set_config('{outbox}.failed', 'on', true);
    insert into {schema}.gap (op, entity_ref, code, message)
    values (tg_op, {entity_ref}, sqlstate, left(sqlerrm, 500));
  exception when {ANY_ERROR} then
    begin
      perform set_config('{outbox}.failed', 'on', true);
      perform nextval('{schema}.lost');
    exception when {ANY_ERROR} then
      raise warning 'catalog-bridge cannot capture a change: %', sqlerrm;
    end;
  end;
  return null;
end;"
    )
}

fn create_function(outbox: &str, name: &str, body: &str) -> String {
    format!(
        "create or replace function {}.{name}() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $catalog_bridge${body}$catalog_bridge$;
",
        quote(outbox)
    )
}
