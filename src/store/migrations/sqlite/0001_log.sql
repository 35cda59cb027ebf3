-- The event log, what is known of each entity, and the positions of sources and sinks (DESIGN section 4).
-- The twin of the PostgreSQL file of the same number. Times are microseconds since 1970, text compares by bytes.

create table log_state (
    only_row integer primary key default 1 check (only_row = 1),
    log_id text not null,
    head integer not null default 0,
    oldest integer not null default 0,
    redactions integer not null default 0,
    -- What the log was last written on; a file cannot tell, so it stays null.
    incarnation text,
    -- A binary with a lower reader version refuses this store.
    min_reader_version integer not null default 1,
    created_at integer not null default (cast(unixepoch('subsec') * 1000000 as integer))
) strict;

-- A random (version 4) UUID.
insert into log_state (log_id)
values (lower(
    hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2)
    || '-8' || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))
));

create table events (
    event_offset integer primary key,
    type text not null,
    entity_ref text not null,
    uid text,
    -- The entity as it came in; null in removals and after a redaction.
    entity text,
    -- Its length, so that pages are bounded before a body is read, and retention counts without reading.
    entity_bytes integer not null,
    changed text,
    occurred_at integer not null,
    recorded_at integer not null,
    cause text not null,
    -- The same entity's event before this one.
    previous_offset integer
) strict;

create index events_by_ref on events (entity_ref, event_offset);
-- Retention looks for old removals; there are few.
create index events_removed on events (event_offset) where type = 'removed';

create table entities (
    entity_ref text primary key not null,
    source text not null,
    uid text,
    content_hash blob not null,
    source_version text,
    source_position integer,
    last_offset integer not null
) strict;

create index entities_by_source on entities (source, entity_ref);

create table checkpoints (
    kind text not null,
    name text not null,
    -- Of a sink: the acknowledged prefix.
    event_offset integer not null default 0,
    -- Of a source: its own position (JSON).
    source_position text,
    walk integer,
    walk_removals_above integer,
    connector_state text,
    owner text,
    epoch integer not null default 0,
    lease_expires_at integer,
    -- How long beyond its expiry a former owner's requests may still land.
    flight_milliseconds integer not null default 0,
    generation integer not null default 1,
    fingerprint text,
    paused integer not null default 0,
    expired integer not null default 0,
    status text,
    -- Counts an operator's commands.
    commands integer not null default 0,
    updated_at integer not null default (cast(unixepoch('subsec') * 1000000 as integer)),
    primary key (kind, name)
) strict;

create table skipped (
    sink text not null,
    generation integer not null,
    event_offset integer not null,
    entity_ref text,
    reason text not null,
    skipped_by text not null,
    skipped_at integer not null default (cast(unixepoch('subsec') * 1000000 as integer)),
    primary key (sink, generation, event_offset)
) strict;

create table rejected (
    source text not null,
    entity_ref text not null,
    reason text not null,
    source_version text,
    source_position integer,
    -- The source that owns the ref, where that is the reason.
    owner text,
    rejected_at integer not null default (cast(unixepoch('subsec') * 1000000 as integer)),
    primary key (source, entity_ref)
) strict;

create table idempotency (
    source text not null,
    key text not null,
    body_hash text not null,
    answer text not null,
    created_at integer not null default (cast(unixepoch('subsec') * 1000000 as integer)),
    primary key (source, key)
) strict;

create index idempotency_by_age on idempotency (created_at);
