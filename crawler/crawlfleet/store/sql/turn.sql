-- The loop of a worker: every turn is one transaction that commits what finished, then takes.
-- Lock order of all statements: batch, permit, task, track, account, egress, item (see ARCHITECTURE.md).

-- name: free_permits
-- The fence: only permits that this registration still holds under these leases are freed and returned.
with mine as materialized (
    select p.egress_id, p.no, p.lease_id
    from unnest(%(egresses)s::int[], %(nos)s::int[], %(leases)s::bigint[]) as w (egress_id, no, lease_id)
    join permit p on p.egress_id = w.egress_id and p.no = w.no
    where p.lease_id = w.lease_id and p.worker_id = %(worker)s
    order by p.egress_id, p.no
    for update of p
), freed as (
    update permit p
    set lease_id = null, worker_id = null, user_id = null, renewed_tick = null, cut = null, taken_at = null,
        batch_id = null, task_no = null
    from mine where p.egress_id = mine.egress_id and p.no = mine.no
)
select lease_id from mine

-- name: finish_tasks
-- What the judge decided; only a leased task can be finished.
update task t
set state = case when d.state = 'waiting' and b.stop <> 'none' then 'cancelled' else d.state end,
    verdict = d.verdict,
    run_after = case when d.state = 'waiting' then now() + make_interval(secs => d.delay_s) end,
    throttled_since = case when d.verdict in ('throttled', 'blocked') then coalesce(t.throttled_since, now()) else t.throttled_since end,
    retries = t.retries + d.retries,
    crashes = t.crashes + d.crashes
from unnest(
    %(nos)s::int[], %(states)s::task_state[], %(verdicts)s::verdict[], %(delays)s::float8[],
    %(retries)s::int[], %(crashes)s::int[]
) as d (task_no, state, verdict, delay_s, retries, crashes), batch b
where b.batch_id = %(batch)s and t.batch_id = %(batch)s and t.task_no = d.task_no and t.state = 'leased'

-- name: record_failures
-- One row an attempt that did not end ok, for `crawlfleet why`.
insert into failure (lease_id, batch_id, task_no, verdict, reason, detail, snapshot, picture)
select * from unnest(
    %(leases)s::bigint[], %(batches)s::int[], %(nos)s::int[], %(verdicts)s::verdict[],
    %(reasons)s::text[], %(details)s::text[], %(snapshots)s::text[], %(pictures)s::bytea[]
)

-- name: teach_tracks
-- The moving average of what an account's crawl takes (the newest weighs 0.3), and until when its shop wants no request,
-- whatever batch asks next. One statement, sorted: whoever locks tracks does it in the order of their keys, and once.
with seen as materialized (
    select k.source_id, k.user_id, c.cost_ms, c.wait_s
    from unnest(%(sources)s::int[], %(users)s::bigint[], %(costs)s::int[], %(waits)s::float8[])
        as c (source_id, user_id, cost_ms, wait_s)
    join track k on k.source_id = c.source_id and k.user_id = c.user_id
    where c.cost_ms is not null or c.wait_s is not null
    order by k.source_id, k.user_id
    for no key update of k
)
update track t
set cost_ms = case
        when c.cost_ms is null then t.cost_ms
        when t.cost_ms is null then c.cost_ms
        else (0.7 * t.cost_ms + 0.3 * c.cost_ms)::int
    end,
    not_before = case when c.wait_s is null then t.not_before else now() + make_interval(secs => c.wait_s) end
from seen c where t.source_id = c.source_id and t.user_id = c.user_id

-- name: park_accounts
-- The shop refused these credentials: no crawl before they change. Sorted, since an import locks in the same order.
with refused as materialized (
    select a.source_id, a.user_id, w.reason
    from unnest(%(sources)s::int[], %(users)s::bigint[], %(generations)s::int[], %(reasons)s::text[])
        as w (source_id, user_id, generation, reason)
    join account a on a.source_id = w.source_id and a.user_id = w.user_id
    where a.generation = w.generation and a.state = 'ok'
    order by a.source_id, a.user_id
    for no key update of a
)
update account a
set state = 'auth', reason = r.reason
from refused r where a.source_id = r.source_id and a.user_id = r.user_id

-- name: recovering
-- Egresses whose successes count.
select egress_id from egress where egress_id = any(%(egresses)s::int[]) and ramp is not null

-- name: lock_egresses
-- The politeness of these egresses, to be changed by `politeness.after`.
select egress_id, cap, cut, cuts_in_row, ramp, ramp_successes, suspects,
    extract(epoch from clock_timestamp() - suspects_since)::float8, cool_first_s, cool_longest_s
from egress where egress_id = any(%(egresses)s::int[])
order by egress_id
for no key update

-- name: change_egress
-- A new cut, a step of the ramp, or one more suspect. `cool_s` null: the cool-down stays as it is.
update egress
set cut = %(cut)s, cuts_in_row = %(cuts_in_row)s, ramp = %(ramp)s, ramp_successes = %(ramp_successes)s,
    suspects = %(suspects)s::bigint[],
    suspects_since = case when %(suspects_new)s then clock_timestamp() else suspects_since end,
    cool_until = coalesce(clock_timestamp() + make_interval(secs => %(cool_s)s::float8), cool_until)
where egress_id = %(egress)s

-- name: upsert_items
-- Sorted by key (two writers in one order never deadlock); what did not change is written once a day (seen_on).
-- Each record looks up its own row: a subquery that may become a join reads the whole table while its statistics are young.
insert into item as i (user_id, source_id, kind, external_id, fetched_at, seen_on, hash, body)
select w.user_id, w.source_id, w.kind, w.external_id, now(), current_date, w.hash, w.body
from unnest(
    %(users)s::bigint[], %(sources)s::int[], %(kinds)s::text[], %(ids)s::text[], %(hashes)s::bytea[], %(bodies)s::jsonb[]
) as w (user_id, source_id, kind, external_id, hash, body)
where (
    select k.hash = w.hash and k.seen_on = current_date
    from item k
    where k.user_id = w.user_id and k.source_id = w.source_id and k.kind = w.kind and k.external_id = w.external_id
) is not true
order by 1, 2, 3, 4
on conflict (user_id, source_id, kind, external_id) do update
set fetched_at = case when i.hash = excluded.hash then i.fetched_at else excluded.fetched_at end,
    seen_on = excluded.seen_on, hash = excluded.hash, body = excluded.body

-- name: hold_permit
-- The fence of a write in the middle of a crawl: keeps the permit from being freed, not from being renewed.
select 1 from permit
where egress_id = %(egress)s and no = %(no)s and lease_id = %(lease)s and worker_id = %(worker)s
for key share

-- name: room
-- Per egress of the batch that the worker is able to crawl by: what is open and free, and the rank of the best ready task
-- there (null: none).
select e.egress_id, open_permits(e) as open,
    (select count(*) from permit p where p.egress_id = e.egress_id and p.lease_id is null and p.no < open_permits(e)) as free,
    (
        select t.rank from task t where t.batch_id = %(batch)s and t.egress_id = e.egress_id and t.state = 'ready'
        order by t.rank, t.shard, t.task_no limit 1
    ) as head
from batch_source b join egress e using (source_id)
where b.batch_id = %(batch)s and b.source_id <> all(%(unable)s::smallint[])

-- name: contenders
-- The live workers that may take at an egress of the batch, with what they hold there: their batch has ready work there,
-- and of accounts that nobody crawls already.
with held as materialized (
    select worker_id, egress_id, count(*) as permits from permit where lease_id is not null group by worker_id, egress_id
), taker as materialized (
    select w.worker_id, w.batch_id, w.unable,
        coalesce(b.max_concurrent, w.slots) - coalesce((select sum(permits) from held h where h.worker_id = w.worker_id), 0)::int as free_slots
    from worker w join batch b using (batch_id) cross join fleet f
    where w.ended_at is null and not w.draining and w.ordinal < b.worker_limit and f.tick - w.renewed_tick <= 2
        and b.state = 'running' and not b.suspended and b.stop = 'none'
), wanted as materialized (
    select b.batch_id, e.source_id, e.egress_id
    from (select distinct batch_id from taker) b
    join batch_source s using (batch_id)
    join egress e using (source_id)
    cross join lateral (
        select from task t where t.batch_id = b.batch_id and t.egress_id = e.egress_id and t.state = 'ready'
            and not exists (
                select from permit p where p.source_id = t.source_id and p.user_id = t.user_id and p.lease_id is not null
            )
        order by t.rank, t.shard, t.task_no limit 1
    ) head
    where s.source_id in (select source_id from batch_source where batch_id = %(batch)s)
)
select k.worker_id, k.batch_id, d.egress_id, k.free_slots,
    coalesce((select permits from held h where h.worker_id = k.worker_id and h.egress_id = d.egress_id), 0)::int as held
from taker k join wanted d using (batch_id)
where d.source_id <> all(k.unable)

-- name: may_take
-- Whether this worker may take at all, how many slots it has, and the tick: no row means no.
select coalesce(b.max_concurrent, w.slots), f.tick from worker w join batch b using (batch_id) cross join fleet f
where w.worker_id = %(worker)s and w.ended_at is null and not w.draining and w.ordinal < b.worker_limit
    and b.state = 'running' and not b.suspended and b.stop = 'none'

-- name: pick_permits
-- Free permits below the limit. Nobody waits here: what another turn is about to fill is skipped.
select p.no from permit p join egress e using (egress_id)
where p.egress_id = %(egress)s and p.lease_id is null and p.no < open_permits(e)
order by p.no limit {limit}
for update of p skip locked

-- name: take_own
-- At the head of the queue (best tier, longest cost class) the worker's own shard first.
update task set state = 'leased'
where batch_id = %(batch)s and task_no = any(array(
    select t.task_no from task t
    where t.batch_id = %(batch)s and t.egress_id = %(egress)s and t.state = 'ready' and t.shard = %(shard)s
        and t.rank = (
            select h.rank from task h
            where h.batch_id = %(batch)s and h.egress_id = %(egress)s and h.state = 'ready'
            order by h.rank, h.shard, h.task_no limit 1
        )
        and t.rank < %(below)s
        and not exists (
            select from permit p where p.source_id = t.source_id and p.user_id = t.user_id and p.lease_id is not null
        )
    order by t.task_no limit {limit}
    for update skip locked
)) and state = 'ready'
returning task_no, user_id, retries, crashes,
    coalesce(extract(epoch from now() - throttled_since), 0)::float8 as throttled_s

-- name: take_any
-- Then whatever is next, whoever's shard it is.
update task set state = 'leased'
where batch_id = %(batch)s and task_no = any(array(
    select t.task_no from task t
    where t.batch_id = %(batch)s and t.egress_id = %(egress)s and t.state = 'ready' and t.rank < %(below)s
        and not exists (
            select from permit p where p.source_id = t.source_id and p.user_id = t.user_id and p.lease_id is not null
        )
    order by t.rank, t.shard, t.task_no limit {limit}
    for update skip locked
)) and state = 'ready'
returning task_no, user_id, retries, crashes,
    coalesce(extract(epoch from now() - throttled_since), 0)::float8 as throttled_s

-- name: fill_permits
-- The permit becomes the lease and the account's lock. Only its holder is handed the account's credentials.
with filled as (
    update permit p
    set lease_id = nextval('lease_id'), worker_id = %(worker)s, user_id = w.user_id, renewed_tick = f.tick, cut = e.cut,
        taken_at = now(), batch_id = %(batch)s, task_no = w.task_no
    from unnest(%(nos)s::int[], %(tasks)s::int[], %(users)s::bigint[]) as w (no, task_no, user_id), egress e, fleet f
    where p.egress_id = %(egress)s and p.no = w.no and e.egress_id = %(egress)s
    returning p.no, p.lease_id, p.task_no, p.user_id, p.source_id, p.cut
)
select filled.*, a.credentials, a.generation, a.state::text, a.reason, a.wait_s
from filled left join lateral (
    select credentials, generation, state, reason, (
        select extract(epoch from k.not_before - now()) from track k
        where k.source_id = filled.source_id and k.user_id = filled.user_id
    )::float8 as wait_s
    from account
    where source_id = filled.source_id and user_id = filled.user_id offset 0
) a on true

-- name: read_back
-- After a lost reply: the leases this registration really holds.
select p.egress_id, p.no, p.lease_id, p.task_no, p.user_id, p.source_id, p.cut, a.credentials, a.generation,
    a.state::text, a.reason, (
        select extract(epoch from k.not_before - now())::float8 from track k
        where k.source_id = p.source_id and k.user_id = p.user_id
    ), t.retries, t.crashes, coalesce(extract(epoch from now() - t.throttled_since), 0)::float8 as throttled_s
from permit p
join task t on t.batch_id = p.batch_id and t.task_no = p.task_no
left join account a on a.source_id = p.source_id and a.user_id = p.user_id
where p.worker_id = %(worker)s

-- name: reserve
-- One request's turn at the egress. Returns no row if the egress was cut since the crawl began, or cools down.
update egress
set next_at = case when gap_us = 0 then clock_timestamp() else greatest(next_at, clock_timestamp()) end
    + make_interval(secs => gap_us / 1e6)
where egress_id = %(egress)s and cut = %(cut)s and cool_until <= clock_timestamp()
returning extract(epoch from next_at - make_interval(secs => gap_us / 1e6) - clock_timestamp())::float8, gap_us / 1e6::float8
