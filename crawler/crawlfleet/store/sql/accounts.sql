-- Accounts: import, the refresh protocol, and the levers of a person.

-- name: lock_accounts
-- An import compares with what was last imported. Sorted, as everything that locks accounts.
select user_id, imported from account
where source_id = %(source)s and user_id = any(%(users)s::bigint[])
order by user_id
for no key update

-- name: put_accounts
-- New credentials (`fresh`) start a new generation and make the account well; otherwise they stay as they are.
insert into account as a (source_id, user_id, subscription, last_login_at, credentials, imported)
select %(source)s, w.user_id, w.subscription, w.last_login_at, w.credentials, w.imported
from unnest(
    %(users)s::bigint[], %(subscriptions)s::text[], %(logins)s::timestamptz[], %(credentials)s::bytea[],
    %(imported)s::bytea[]
) as w (user_id, subscription, last_login_at, credentials, imported)
order by w.user_id
on conflict (source_id, user_id) do update
set subscription = excluded.subscription, last_login_at = excluded.last_login_at

-- name: renew_credentials
update account a
set credentials = w.credentials, imported = w.imported, generation = a.generation + 1, refresh_tries = 0,
    refresh_lease = null, reason = case when a.state = 'auth' then null else a.reason end,
    state = case when a.state = 'auth' then 'ok' else a.state end
from unnest(%(users)s::bigint[], %(credentials)s::bytea[], %(imported)s::bytea[]) as w (user_id, credentials, imported)
where a.source_id = %(source)s and a.user_id = w.user_id

-- name: list_accounts
select a.user_id, s.name, a.state::text, a.subscription, a.last_login_at, a.reason
from account a join source s using (source_id)
where (not %(needs_attention)s or a.state = 'auth')
order by a.user_id, s.name

-- name: show_account
select a.user_id, s.name, a.state::text, a.subscription, a.last_login_at, a.reason, a.generation, a.refresh_tries,
    e.name, k.cost_ms
from account a join source s using (source_id)
left join track k using (source_id, user_id)
left join egress e using (egress_id)
where a.user_id = %(user)s order by s.name

-- name: count_items
select s.name, count(*)::int from item i join source s using (source_id) where i.user_id = %(user)s group by 1

-- name: set_account_state
-- Only a person enables an account that was parked: then what is known of its last refresh counts no more. One under way
-- is left alone. Sorted, as everything that locks accounts.
with mine as materialized (
    select a.source_id, a.user_id, s.name
    from account a join source s using (source_id)
    where a.user_id = %(user)s and (%(source)s::text is null or s.name = %(source)s)
    order by a.source_id
    for no key update of a
)
update account a
set state = %(state)s::account_state, reason = %(reason)s,
    refresh_tries = case when %(state)s::account_state = 'ok' and a.state = 'auth' then 0 else a.refresh_tries end,
    refresh_lease = case when %(state)s::account_state = 'ok' and a.state = 'auth' then null else a.refresh_lease end
from mine where a.source_id = mine.source_id and a.user_id = mine.user_id
returning mine.name

-- name: purge_items
delete from item where user_id = %(user)s

-- name: purge_accounts
-- Sorted, as everything that locks accounts.
with mine as materialized (
    select source_id, user_id from account where user_id = %(user)s order by source_id for update
)
delete from account a using mine where a.source_id = mine.source_id and a.user_id = mine.user_id

-- name: purge_tracks
-- Sorted, as everything that locks tracks.
with mine as materialized (
    select source_id, user_id from track where user_id = %(user)s order by source_id for update
)
delete from track k using mine where k.source_id = mine.source_id and k.user_id = mine.user_id

-- name: purge_snapshots
-- What was kept of the user's pages and replies.
update failure f set snapshot = null, picture = null, detail = ''
from task t where t.user_id = %(user)s and t.batch_id = f.batch_id and t.task_no = f.task_no

-- name: holds_permit
-- A user who is being crawled right now cannot be purged.
select exists (select from permit where user_id = %(user)s)

-- name: read_credentials
-- With the seconds that an open intent is old at least: ticks may be late, never early.
select a.credentials, a.generation, a.refresh_tries, a.refresh_lease,
    greatest(0, f.tick - a.refresh_tick - 1) * f.tick_ms / 1000.0::float8
from account a cross join fleet f where a.source_id = %(source)s and a.user_id = %(user)s

-- name: intend_refresh
-- Step 1 of the refresh protocol: nobody sends this generation's token before this is committed.
-- `tries` is what the caller saw: of two that want it only one is answered.
update account
set refresh_tries = refresh_tries + 1, refresh_lease = %(lease)s, refresh_tick = (select tick from fleet)
where source_id = %(source)s and user_id = %(user)s and generation = %(generation)s and refresh_tries = %(tries)s
returning refresh_tries

-- name: store_refresh
-- Step 3: by compare-and-swap on the generation alone. A rescued worker's new token is still the only good one.
-- If somebody parked the account over the old token meanwhile, it is well again.
update account
set credentials = %(credentials)s, generation = generation + 1, refresh_tries = 0, refresh_lease = null,
    state = case when reason in ('RefreshLost', 'RefreshRefused', 'LoginInterrupted') and state = 'auth' then 'ok' else state end,
    reason = case when reason in ('RefreshLost', 'RefreshRefused', 'LoginInterrupted') and state = 'auth' then null else reason end
where source_id = %(source)s and user_id = %(user)s and generation = %(generation)s
returning generation

-- name: end_try
-- The POST has ended and decided nothing.
update account set refresh_tries = %(tries)s, refresh_lease = null
where source_id = %(source)s and user_id = %(user)s and generation = %(generation)s and refresh_lease = %(lease)s

-- name: sealed_accounts
-- For the rotation of keys: the next chunk, locked against imports and refreshes while it is sealed anew.
select a.source_id, a.user_id, s.name, a.credentials, a.imported
from account a join source s using (source_id)
where (a.source_id, a.user_id) > (%(source)s, %(user)s)
order by a.source_id, a.user_id limit 500
for no key update of a

-- name: reseal_accounts
-- The same plain values under another key: neither the generation nor a refresh under way is touched. One statement: in
-- psycopg's executemany, which pipelines, a paused client would keep its locks (the server's time-out has no effect).
update account a set credentials = w.credentials, imported = w.imported
from unnest(%(sources)s::int[], %(users)s::bigint[], %(credentials)s::bytea[], %(imported)s::bytea[])
    as w (source_id, user_id, credentials, imported)
where a.source_id = w.source_id and a.user_id = w.user_id

-- name: sample_accounts
-- A few accounts, to see whether the keys fit; of a batch's sources if one is given.
select s.name, a.user_id, a.credentials from account a join source s using (source_id)
where %(batch)s::int is null or a.source_id in (select source_id from batch_source where batch_id = %(batch)s)
limit 10
