-- Every table of the system. Times come from sync.clock(), so that one clock rules leases and due times
-- (tests move it with the setting sync.clock_offset).

CREATE FUNCTION sync.clock() RETURNS timestamptz LANGUAGE sql STABLE AS
$$ SELECT now() + coalesce(nullif(current_setting('sync.clock_offset', true), ''), '0')::interval $$;

-- Numbers leases and reads: a later one is larger, on every machine.
CREATE SEQUENCE sync.ticket;


-- The ledger ------------------------------------------------------------------------------------------------------

-- The active queue: events that are not finished. It stays small, whatever has passed through it.
CREATE TABLE sync.events (
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source       text NOT NULL,
    event_id     text NOT NULL,
    entity       text NOT NULL,
    key          text NOT NULL,
    group_key    text,
    action       text NOT NULL CHECK (action IN ('create', 'update', 'delete')),
    epoch        integer NOT NULL DEFAULT 0,
    version      bigint NOT NULL,
    thin         boolean NOT NULL,
    data         jsonb,
    content_hash bytea NOT NULL,
    origin       text NOT NULL DEFAULT 'notification',
    conflicting  boolean NOT NULL DEFAULT false,      -- the same id came with other content
    received_at  timestamptz NOT NULL DEFAULT sync.clock(),
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'leased', 'waiting', 'dead')),
    awaiting     text CHECK (awaiting IN ('record', 'clock')),  -- why it waits without spending attempts
    due_at       timestamptz NOT NULL DEFAULT sync.clock(),
    attempts     integer NOT NULL DEFAULT 0,
    lease_token  bigint,
    lease_until  timestamptz,
    revision     bigint,                              -- the archived record's revision that holds this change
    absent_at    timestamptz,                         -- its source said once that it has no such record
    ask_source   boolean NOT NULL DEFAULT false,      -- read the record from the source if it is not here
    error        text
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX events_due ON sync.events (due_at, seq) WHERE revision IS NULL AND state IN ('pending', 'waiting');
CREATE INDEX events_leased ON sync.events (lease_until) WHERE state = 'leased';
CREATE INDEX events_record ON sync.events (entity, key);

-- Finished events, by month, so that old ones are dropped and not deleted.
CREATE TABLE sync.event_history (
    seq          bigint NOT NULL,
    source       text NOT NULL,
    event_id     text NOT NULL,
    entity       text NOT NULL,
    key          text NOT NULL,
    group_key    text,
    action       text NOT NULL,
    epoch        integer NOT NULL,
    version      bigint NOT NULL,
    thin         boolean NOT NULL,
    data         jsonb,
    origin       text NOT NULL,
    conflicting  boolean NOT NULL,
    received_at  timestamptz NOT NULL,
    attempts     integer NOT NULL,
    revision     bigint,
    error        text,
    state        text NOT NULL CHECK (state IN ('done', 'superseded', 'discarded')),
    reason       text,
    finished_at  timestamptz NOT NULL DEFAULT sync.clock()
) PARTITION BY RANGE (finished_at);
CREATE TABLE sync.event_history_default PARTITION OF sync.event_history DEFAULT;
CREATE INDEX event_history_record ON sync.event_history (entity, key);
CREATE INDEX event_history_id ON sync.event_history (source, event_id);

-- Who was here before. Kept longer than the history, because retries and replays of a source can come late.
CREATE TABLE sync.event_ids (
    source       text NOT NULL,
    event_id     text NOT NULL,
    content_hash bytea NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT sync.clock(),
    PRIMARY KEY (source, event_id, content_hash)
);

-- What was ever received and finished; slots keep writers apart. With the active queue it must always add up.
CREATE TABLE sync.tallies (
    entity text NOT NULL,
    what   text NOT NULL CHECK (what IN ('received', 'duplicate', 'done', 'superseded', 'discarded')),
    slot   integer NOT NULL,
    n      bigint NOT NULL,
    PRIMARY KEY (entity, what, slot)
) WITH (fillfactor = 50);


-- The archive -----------------------------------------------------------------------------------------------------

-- What each source system says of each record: the newest known state, by (epoch, version, ticket, content_hash).
CREATE TABLE sync.parts (
    entity       text NOT NULL,
    key          text NOT NULL,
    part         text NOT NULL,
    epoch        integer NOT NULL,
    version      bigint NOT NULL,
    ticket       bigint NOT NULL,                     -- 0: told by an event; else the read that brought it
    content_hash bytea NOT NULL,
    deleted      boolean NOT NULL,
    data         jsonb NOT NULL,
    PRIMARY KEY (entity, key, part)
) WITH (fillfactor = 85);

-- One row a record: what should be at the third party, and what it last acknowledged (applied_*).
CREATE TABLE sync.records (
    entity           text NOT NULL,
    key              text NOT NULL,
    group_key        text,
    revision         bigint NOT NULL DEFAULT 0,
    deleted          boolean NOT NULL DEFAULT false,
    ready            boolean NOT NULL DEFAULT false,  -- the owner's and all required parts are here
    changed_at       timestamptz NOT NULL DEFAULT sync.clock(),

    applied_revision bigint NOT NULL DEFAULT 0,
    applied_digest   bytea,                           -- null: the third party has no such record, as far as it told
    prior_digest     bytea,
    applied_group    text,
    applied_at       timestamptz,
    first_applied_at timestamptz,
    external_id      text,

    lane             smallint NOT NULL DEFAULT 0,     -- 0: live changes, 1: backfill
    attempts         integer NOT NULL DEFAULT 0,
    due_at           timestamptz NOT NULL DEFAULT sync.clock(),
    parked           text CHECK (parked IN ('dead', 'held')),
    rejected_digest  bytea,
    lease_token      bigint,
    lease_until      timestamptz,
    intent_at        timestamptz,                     -- the last call was announced at
    unsettled_until  timestamptz,                     -- a call of unknown outcome can land until then
    error            text,

    out_of_step boolean GENERATED ALWAYS AS
        (ready AND (applied_revision <> revision OR unsettled_until IS NOT NULL)) STORED,
    PRIMARY KEY (entity, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX records_due ON sync.records (lane, due_at) WHERE out_of_step AND parked IS NULL;
CREATE INDEX records_group ON sync.records (entity, group_key);
CREATE INDEX records_moving ON sync.records (entity, applied_group) WHERE applied_group IS DISTINCT FROM group_key;

-- Every call that was to write at the third party, by month.
CREATE TABLE sync.push_attempts (
    entity   text NOT NULL,
    key      text NOT NULL,
    revision bigint NOT NULL,
    step     text NOT NULL,
    outcome  text NOT NULL,
    status   integer,
    detail   text,
    at       timestamptz NOT NULL DEFAULT sync.clock()
) PARTITION BY RANGE (at);
CREATE TABLE sync.push_attempts_default PARTITION OF sync.push_attempts DEFAULT;
CREATE INDEX push_attempts_record ON sync.push_attempts (entity, key, at);


-- Systems, entities, groups ---------------------------------------------------------------------------------------

CREATE TABLE sync.systems (
    name        text PRIMARY KEY,
    epoch       integer NOT NULL DEFAULT 0,           -- stepped when a source was restored from a backup
    paused      boolean NOT NULL DEFAULT false,
    open_since  timestamptz,                          -- the breaker is open since
    probe_at    timestamptz,
    probe_wait  double precision,
    not_before  timestamptz,                          -- Retry-After
    next_call   timestamptz                           -- the configured rate
);

-- Distinct records that failed since the last success; emptied by a success.
CREATE TABLE sync.breaker_failures (
    system          text NOT NULL,
    entity          text NOT NULL,
    key             text NOT NULL,
    attempts_before integer NOT NULL,
    PRIMARY KEY (system, entity, key)
);

CREATE TABLE sync.entities (
    name        text PRIMARY KEY,
    paused      boolean NOT NULL DEFAULT false,
    fingerprint text                                  -- of the mapping that the archive's digests were made with
);

-- Business groups, each with its full sync: leased, resumable.
CREATE TABLE sync.groups (
    entity          text NOT NULL,
    group_key       text NOT NULL,
    seen_at         timestamptz NOT NULL DEFAULT sync.clock(),
    sync_id         bigint,
    sync_phase      text CHECK (sync_phase IN ('list', 'delete', 'push')),
    sync_cursor     text,
    sync_listed     bigint NOT NULL DEFAULT 0,
    sync_started_at timestamptz,
    sync_error      text,
    lease_token     bigint,
    lease_until     timestamptz,
    completed_at    timestamptz,
    first_completed_at timestamptz,
    validated_at    timestamptz,                      -- null: to be validated as soon as may be
    audited_at      timestamptz,                      -- by listing, not only by count
    PRIMARY KEY (entity, group_key)
);

-- The keys that the owner listed in a full sync under way.
CREATE TABLE sync.full_sync_keys (
    sync_id bigint NOT NULL,
    key     text NOT NULL,
    PRIMARY KEY (sync_id, key)
);


-- Validation and alerts -------------------------------------------------------------------------------------------

CREATE TABLE sync.validations (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity     text NOT NULL,
    group_key  text NOT NULL,
    at         timestamptz NOT NULL DEFAULT sync.clock(),
    verdict    text NOT NULL CHECK (verdict IN ('in_step', 'drift', 'not_validated')),
    reason     text,
    expected   bigint,
    counted    bigint,
    ambiguous  bigint,
    compared   bigint,
    drift      bigint NOT NULL DEFAULT 0
);
CREATE INDEX validations_group ON sync.validations (entity, group_key, at);

-- Confirmed differences.
CREATE TABLE sync.drift (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity        text NOT NULL,
    group_key     text NOT NULL,
    key           text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('missing', 'stale', 'different', 'extra', 'twin', 'foreign')),
    revision      bigint,
    ours          bytea,
    theirs        bytea,
    external_id   text,
    sample        jsonb,
    status        text NOT NULL CHECK (status IN ('found', 'repairing', 'repaired', 'stubborn', 'left')),
    found_at      timestamptz NOT NULL DEFAULT sync.clock(),
    last_seen_at  timestamptz NOT NULL DEFAULT sync.clock(),
    repaired_at   timestamptz
);
CREATE UNIQUE INDEX drift_open ON sync.drift (entity, group_key, key, kind, coalesce(external_id, ''))
    WHERE status <> 'repaired';
CREATE INDEX drift_record ON sync.drift (entity, key);

-- The alerts' outbox: written in the transaction of what it tells of, sent afterwards, at least once.
CREATE TABLE sync.alerts (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL,
    cause        text NOT NULL,
    entity       text,
    title        text NOT NULL,
    n            bigint NOT NULL DEFAULT 1,
    examples     jsonb NOT NULL DEFAULT '[]',
    created_at   timestamptz NOT NULL DEFAULT sync.clock(),
    updated_at   timestamptz NOT NULL DEFAULT sync.clock(),
    resolved_at  timestamptz,
    sent_at      timestamptz,
    over_sent_at timestamptz,
    sending_until timestamptz,
    send_error   text
);
CREATE UNIQUE INDEX alerts_open ON sync.alerts (kind, cause) WHERE resolved_at IS NULL;
CREATE TABLE sync.alert_records (
    kind   text NOT NULL,
    cause  text NOT NULL,
    entity text NOT NULL,
    key    text NOT NULL,
    at     timestamptz NOT NULL DEFAULT sync.clock(),
    PRIMARY KEY (kind, cause, entity, key)
);

CREATE TABLE sync.heartbeats (
    name   text PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT sync.clock(),
    detail jsonb NOT NULL DEFAULT '{}'
);
