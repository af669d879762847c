-- The whole state of a fleet. Hot tables (permit, task, track) have fixed-width rows and no foreign keys.

create type batch_state as enum ('planning', 'running', 'closed');
create type stop_mode as enum ('none', 'drain', 'cancel');
create type task_state as enum ('ready', 'leased', 'waiting', 'ok', 'dead', 'cancelled');
create type verdict as enum ('ok', 'retry', 'throttled', 'blocked', 'auth', 'crashed', 'bug');
create type account_state as enum ('ok', 'auth', 'disabled');

-- One row: the fleet's own clock, and how long a permit outlives its last renewal (in ticks).
create table fleet (
    id boolean primary key default true check (id),
    tick bigint not null default 0,
    ticked_at timestamptz not null default now(),
    housekept_at timestamptz not null default 'epoch',
    tick_ms integer not null default 5000 check (tick_ms > 0),
    expire_ticks integer not null default 6 check (expire_ticks >= 4),
    quarantine_ticks integer not null default 14 check (quarantine_ticks >= 0)
);
insert into fleet default values;

-- The fencing token: one sequence for all, so a later crawl of an account has the higher lease.
create sequence lease_id;

create table source (
    source_id smallint generated always as identity primary key,
    name text not null unique,
    retain_days integer check (retain_days > 0)
);

-- One exit (platform and IP) and its politeness. A removed egress keeps its row while permits are held.
create table egress (
    egress_id smallint generated always as identity primary key,
    source_id smallint not null references source,
    name text not null,
    exit text not null,
    proxy bytea,
    cap smallint not null check (cap >= 0),
    gap_us integer not null default 0 check (gap_us >= 0),
    cool_first_s integer not null,
    cool_longest_s integer not null,
    removed boolean not null default false,
    next_at timestamptz not null default 'epoch',
    cool_until timestamptz not null default 'epoch',
    cut bigint not null default 0,
    cuts_in_row smallint not null default 0,
    ramp smallint check (ramp > 0),
    ramp_successes smallint not null default 0,
    suspects bigint[] not null default '{}',
    suspects_since timestamptz not null default 'epoch',
    unique (source_id, exit)
) with (fillfactor = 50);
create unique index egress_exit on egress (exit) where not removed;
create unique index egress_name on egress (source_id, name) where not removed;

-- How many permits of an egress may be filled now; a surplus that is held already finishes.
create function open_permits(e egress) returns integer language sql stable
return case
    when e.removed or e.cool_until > statement_timestamp() then 0
    else least(e.cap, coalesce(e.ramp, e.cap))
end;

-- One row is the right to run one crawl; filled, it is the lease and the account's lock.
create table permit (
    lease_id bigint,
    worker_id bigint,
    user_id bigint,
    renewed_tick bigint,
    cut bigint,
    taken_at timestamptz,
    batch_id integer,
    task_no integer,
    egress_id smallint not null,
    no smallint not null,
    source_id smallint not null,
    primary key (egress_id, no),
    check (num_nulls(lease_id, worker_id, user_id, renewed_tick, cut, taken_at, batch_id, task_no) in (0, 8))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create unique index permit_account on permit (source_id, user_id) where lease_id is not null;

-- One registration of one worker process. A restarted process registers anew.
create table worker (
    worker_id bigint generated always as identity primary key,
    renewed_tick bigint not null,
    started_at timestamptz not null default now(),
    ended_at timestamptz,
    batch_id integer not null,
    ordinal integer not null check (ordinal >= 0),
    slots integer not null check (slots > 0),
    pid integer not null,
    draining boolean not null default false,
    unable smallint[] not null default '{}',
    host text not null,
    pid_space text not null
) with (fillfactor = 50);

create table account (
    user_id bigint not null check (user_id > 0),
    source_id smallint not null references source,
    state account_state not null default 'ok',
    subscription text not null check (subscription in ('paid', 'free')),
    last_login_at timestamptz,
    reason text,
    credentials bytea not null,
    imported bytea not null,
    generation integer not null default 0,
    refresh_tries smallint not null default 0,
    refresh_lease bigint,
    refresh_tick bigint,
    primary key (source_id, user_id)
);

-- 0 HIGH: paid; 1 MEDIUM: free, active within 7 days; 2 LOW.
create function tier_of(a account, at timestamptz) returns smallint language sql stable
return case
    when a.subscription = 'paid' then 0
    when a.last_login_at >= at - interval '7 days' then 1
    else 2
end::smallint;

-- What crawling an account has taught: its egress (sticky), what it costs, and until when its shop asked to wait.
create table track (
    user_id bigint not null,
    not_before timestamptz,
    cost_ms integer,
    source_id smallint not null,
    egress_id smallint not null,
    primary key (source_id, user_id)
) with (fillfactor = 80);
create index track_egress on track (egress_id);

create table batch (
    batch_id integer generated always as identity primary key,
    uid text not null unique,
    name text not null,
    round integer not null default 1,
    state batch_state not null default 'planning',
    stop stop_mode not null default 'none',
    suspended boolean not null default false,
    workers integer not null check (workers > 0),
    worker_limit integer not null check (worker_limit >= 0),
    max_concurrent integer check (max_concurrent > 0),
    selector jsonb not null,
    total integer not null default 0,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    closed_at timestamptz,
    retain_s integer check (retain_s >= 0),
    counted_at timestamptz not null default 'epoch'
);
create index batch_open on batch (batch_id) where state <> 'closed';
create index batch_name on batch (name, batch_id);

-- The adapter settings a batch works from: a snapshot, so that an edited source does not change a running batch.
create table batch_source (
    batch_id integer not null references batch on delete cascade,
    source_id smallint not null references source,
    settings jsonb not null,
    primary key (batch_id, source_id)
);

create table task (
    user_id bigint not null,
    run_after timestamptz,
    throttled_since timestamptz,
    batch_id integer not null,
    task_no integer not null,
    state task_state not null,
    verdict verdict,
    source_id smallint not null,
    egress_id smallint not null,
    rank smallint not null,
    shard smallint not null,
    retries smallint not null default 0,
    crashes smallint not null default 0,
    primary key (batch_id, task_no)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index task_ready on task (batch_id, egress_id, rank, shard, task_no) where state = 'ready';
create index task_waiting on task (batch_id, run_after) where state = 'waiting';

-- Why a crawl did not end ok: append-only, one row an attempt.
create table failure (
    failure_id bigint generated always as identity primary key,
    lease_id bigint not null,
    at timestamptz not null default now(),
    batch_id integer not null,
    task_no integer not null,
    verdict verdict not null,
    reason text not null,
    detail text not null,
    snapshot text,
    picture bytea
);
create index failure_task on failure (batch_id, task_no);

create table item (
    user_id bigint not null,
    source_id smallint not null,
    kind text not null,
    external_id text not null,
    fetched_at timestamptz not null,
    seen_on date not null,
    hash bytea not null,
    body jsonb not null,
    primary key (user_id, source_id, kind, external_id)
);

-- For forgetting what the shop has not shown for the source's retention. (For "what changed since" make one of your own.)
create index item_seen on item (source_id, seen_on);

-- Counts by state and verdict, written by housekeeping, so that watching a batch never scans its tasks.
create table progress (
    batch_id integer not null references batch on delete cascade,
    source_id smallint not null,
    state task_state not null,
    verdict verdict,
    tasks integer not null
);
create index progress_batch on progress (batch_id);

-- The interface for our users' own queries. `fetched_at` is when this content was first seen.
create view items as
select i.user_id, s.name as source, i.kind, i.external_id, i.fetched_at, i.body
from item i join source s using (source_id);

do $$
begin
    create role crawlfleet_reader nologin;
exception
    when duplicate_object or insufficient_privilege then null;
end $$;
do $$
begin
    grant select on items to crawlfleet_reader;
exception
    when undefined_object then null;
end $$;
