-- The event log, what is known of each entity, and the positions of sources and sinks (DESIGN section 4).
-- Refs and keys are COLLATE "C": their order is byte order, the same on every server and in SQLite.

create table log_state (
    only_row boolean primary key default true check (only_row),
    log_id uuid not null,
    head bigint not null default 0,
    oldest bigint not null default 0,
    redactions bigint not null default 0,
    -- What the log was last written on: another value means that the store was restored or moved.
    incarnation text,
    -- A binary with a lower reader version refuses this store.
    min_reader_version bigint not null default 1,
    created_at timestamptz not null default clock_timestamp()
);

insert into log_state (log_id) values (gen_random_uuid());

create table events (
    event_offset bigint primary key,
    type text not null,
    entity_ref text collate "C" not null,
    uid text,
    -- The entity as it came in; null in removals and after a redaction.
    entity text,
    -- Its length, so that pages are bounded before a body is read, and retention counts without reading.
    entity_bytes bigint not null,
    changed text,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null,
    cause text not null,
    -- The same entity's event before this one.
    previous_offset bigint
);

create index events_by_ref on events (entity_ref, event_offset);
-- Retention looks for old removals; there are few.
create index events_removed on events (event_offset) where type = 'removed';

create table entities (
    entity_ref text collate "C" primary key,
    source text collate "C" not null,
    uid text,
    content_hash bytea not null,
    source_version text,
    source_position bigint,
    last_offset bigint not null
);

create index entities_by_source on entities (source, entity_ref);

create table checkpoints (
    kind text collate "C" not null,
    name text collate "C" not null,
    -- Of a sink: the acknowledged prefix.
    event_offset bigint not null default 0,
    -- Of a source: its own position (JSON).
    source_position text,
    walk bigint,
    walk_removals_above bigint,
    connector_state text,
    owner text,
    epoch bigint not null default 0,
    lease_expires_at timestamptz,
    -- How long beyond its expiry a former owner's requests may still land.
    flight_milliseconds bigint not null default 0,
    generation bigint not null default 1,
    fingerprint text,
    paused boolean not null default false,
    expired boolean not null default false,
    status text,
    -- Counts an operator's commands.
    commands bigint not null default 0,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (kind, name)
);

create table skipped (
    sink text collate "C" not null,
    generation bigint not null,
    event_offset bigint not null,
    entity_ref text collate "C",
    reason text not null,
    skipped_by text not null,
    skipped_at timestamptz not null default clock_timestamp(),
    primary key (sink, generation, event_offset)
);

create table rejected (
    source text collate "C" not null,
    entity_ref text collate "C" not null,
    reason text not null,
    source_version text,
    source_position bigint,
    -- The source that owns the ref, where that is the reason.
    owner text collate "C",
    rejected_at timestamptz not null default clock_timestamp(),
    primary key (source, entity_ref)
);

create table idempotency (
    source text collate "C" not null,
    key text collate "C" not null,
    body_hash text not null,
    answer text not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (source, key)
);

create index idempotency_by_age on idempotency (created_at);
