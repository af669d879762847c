-- Batches: planning, levers, and what people read.

-- name: add_batch
-- Unique by uid: a second planner finds the first one's row.
insert into batch (uid, name, namespace, workers, worker_limit, selector, retain_s)
values (%(uid)s, %(name)s, %(namespace)s, %(workers)s, %(workers)s, %(selector)s, %(retain_s)s)
on conflict (uid) do nothing
returning batch_id

-- name: forget_unplanned
-- A batch that never came to be planned leaves nothing behind.
delete from batch where uid = %(uid)s and state = 'planning'

-- name: find_batch
select batch_id from batch where uid = %(uid)s

-- name: add_batch_source
insert into batch_source (batch_id, source_id, settings)
select %(batch)s, source_id, %(settings)s from source where name = %(name)s
returning source_id

-- name: add_tracks
-- Accounts seen for the first time get their egress, spread by the egresses' caps, on from where the last plan ended:
-- a few new sellers a night would otherwise all go to the first egress.
with slot as materialized (
    select e.source_id, e.egress_id, row_number() over w - 1 as k, count(*) over (partition by e.source_id) as n
    from egress e, generate_series(1, greatest(e.cap, 1)) as no
    where not e.removed and (e.cuts_in_row < %(banned_after)s or not exists (
        select from egress g where g.source_id = e.source_id and not g.removed and g.cuts_in_row < %(banned_after)s
    ))
    window w as (partition by e.source_id order by no, e.egress_id)
), known as materialized (
    select b.source_id, (select count(*) from track k where k.source_id = b.source_id) as tracks
    from batch_source b where b.batch_id = %(batch)s
), fresh as (
    select a.source_id, a.user_id, known.tracks + row_number() over (partition by a.source_id order by a.user_id) as no
    from account a join known using (source_id)
    where not exists (select from track k where k.source_id = a.source_id and k.user_id = a.user_id)
)
insert into track (source_id, user_id, egress_id)
select f.source_id, f.user_id, s.egress_id
from fresh f join slot s on s.source_id = f.source_id and s.k = f.no %% s.n
order by 1, 2
on conflict do nothing

-- name: plan_tasks
-- One task an account. Rank: tier first, then the longest expected cost class (log2 of milliseconds).
-- Accounts that nobody can log in to are planned as dead, so that no seller is missing from the batch.
with cost as materialized (
    select s.source_id, coalesce((
        select avg(k.cost_ms) from track k where k.source_id = s.source_id
    ), %(default_cost_ms)s)::int as default_ms
    from batch_source s where s.batch_id = %(batch)s
), planned as (
    select a.user_id, a.source_id, k.egress_id, a.state,
        (tier_of(a, now()) * 64 + 63 - floor(ln(greatest(coalesce(k.cost_ms, c.default_ms), 1)) / ln(2.0::float8)))::smallint as rank,
        ((hashint8(a.user_id) & 2147483647) %% %(workers)s)::smallint as shard
    from account a
    join cost c using (source_id)
    join track k using (source_id, user_id)
    where a.state <> 'disabled'
        and (%(tiers)s::int[] is null or tier_of(a, now()) = any(%(tiers)s::int[]))
        and (%(ids)s::bigint[] is null or a.user_id = any(%(ids)s))
        and (%(divisor)s::int is null or mod(a.user_id, %(divisor)s) = %(remainder)s)
)
insert into task (user_id, batch_id, task_no, state, verdict, source_id, egress_id, rank, shard)
select user_id, %(batch)s, row_number() over (order by egress_id, rank, shard, user_id),
    case when state = 'auth' then 'dead' else 'ready' end::task_state,
    case when state = 'auth' then 'auth' end::verdict,
    source_id, egress_id, rank, shard
from planned

-- name: tell_dead_on_arrival
-- Why those tasks were planned as dead.
insert into failure (lease_id, batch_id, task_no, verdict, reason, detail)
select 0, t.batch_id, t.task_no, 'auth', coalesce(a.reason, 'Unknown'),
    'the account has needed a person since an earlier crawl; import new credentials or enable it'
from task t join account a using (source_id, user_id)
where t.batch_id = %(batch)s and t.state = 'dead'

-- name: start_batch
update batch set state = 'running', started_at = now(), total = %(total)s where batch_id = %(batch)s

-- name: analyze
-- So that the first turn is planned with what is there now.
analyze task, track, account

-- name: retry_dead
-- Dead tasks of one verdict (or all) begin anew, with fresh budgets; auth only where the account is well again.
update task t
set state = 'ready', verdict = null, retries = 0, crashes = 0, throttled_since = null, egress_id = k.egress_id
from track k, account a
where t.batch_id = %(batch)s and t.state in ('dead', 'cancelled') and (%(verdict)s::verdict is null or t.verdict = %(verdict)s)
    and k.source_id = t.source_id and k.user_id = t.user_id
    and a.source_id = t.source_id and a.user_id = t.user_id and a.state = 'ok'

-- name: left_dead
-- Tasks that no retry revives before somebody has looked after their account.
select count(*)::int from task t join account a using (source_id, user_id)
where t.batch_id = %(batch)s and t.state = 'dead' and (%(verdict)s::verdict is null or t.verdict = %(verdict)s)
    and a.state = 'auth'

-- name: reopen_batch
update batch set round = round + (state = 'closed')::int, state = 'running', stop = 'none', closed_at = null
where batch_id = %(batch)s

-- name: stop_batch
update batch set stop = %(stop)s::stop_mode where batch_id = %(batch)s and state <> 'closed'
returning batch_id

-- name: drain_worker
update worker set draining = true where worker_id = %(worker)s and ended_at is null
returning worker_id

-- name: worker_ended
-- When a registration ended, and whether it is silent.
select w.ended_at, f.tick - w.renewed_tick > 2 from worker w cross join fleet f where w.worker_id = %(worker)s

-- name: namesakes
-- Other batches of that name, the newest first.
select uid, state::text from batch where name = %(name)s and uid <> %(uid)s order by batch_id desc

-- name: batch_by_name
-- The newest batch of that name, or the one with that uid, in full or as `Batch.short_uid` has it.
select batch_id, uid, name, round, state::text, stop::text, suspended, total, workers,
    extract(epoch from coalesce(closed_at, now()) - started_at)::float8 as seconds, started_at, closed_at
from batch where name = %(name)s or uid = %(name)s or right(uid, 12) = %(name)s
order by batch_id desc limit 1

-- name: recent_batches
select batch_id, uid, name, round, state::text, stop::text, suspended, total, workers,
    extract(epoch from coalesce(closed_at, now()) - started_at)::float8 as seconds, started_at, closed_at
from batch order by batch_id desc limit 20

-- name: read_progress
select s.name, p.state::text, p.verdict::text, sum(p.tasks)::int
from progress p join source s using (source_id) where p.batch_id = %(batch)s
group by 1, 2, 3

-- name: waits
-- What an open batch waits for, in words for a person.
select s.name, e.name, e.cap, open_permits(e), (select count(*) from permit p where p.egress_id = e.egress_id and p.lease_id is not null),
    greatest(0, extract(epoch from e.cool_until - clock_timestamp()))::float8 as cool_s, e.removed, e.cuts_in_row,
    (select count(*) from permit p, fleet f where p.egress_id = e.egress_id and p.lease_id is not null
        and f.tick - p.renewed_tick >= f.expire_ticks) as silent
from batch_source b join egress e using (source_id) join source s using (source_id)
where b.batch_id = %(batch)s order by 1, 2

-- name: next_retry
select extract(epoch from min(run_after) - now())::float8 from task where batch_id = %(batch)s and state = 'waiting'

-- name: why
-- One user's tasks of the recent batches, of the newest batch first, with the attempts that did not end ok.
select t.batch_id, s.name, t.state::text, t.verdict::text, t.run_after, f.at, f.verdict::text, f.reason, f.detail, f.failure_id,
    f.snapshot, f.picture
from task t
join source s using (source_id)
left join failure f on f.batch_id = t.batch_id and f.task_no = t.task_no
where t.user_id = %(user)s and t.batch_id in (select batch_id from batch order by batch_id desc limit 20)
order by t.batch_id desc, t.task_no, f.failure_id

-- name: failures
-- What the dead tasks of a batch died of, the most frequent first, each with one user to look at.
select s.name, t.verdict::text, f.reason, count(*), min(t.user_id), (array_agg(f.detail order by t.user_id))[1]
from task t
join source s using (source_id)
cross join lateral (
    select reason, detail from failure where batch_id = t.batch_id and task_no = t.task_no
    order by failure_id desc limit 1
) f
where t.batch_id = %(batch)s and t.state = 'dead'
group by 1, 2, 3
order by 4 desc, 1, 2, 3 limit 10

-- name: live_workers
-- The registrations of a batch that have not ended, and what each holds.
select w.worker_id, w.ordinal, w.host, w.pid_space, w.pid, w.slots, w.draining, f.tick - w.renewed_tick > 2 as silent,
    (select count(*) from permit p where p.worker_id = w.worker_id)::int as held
from worker w cross join fleet f
where w.batch_id = %(batch)s and w.ended_at is null
order by w.ordinal, w.worker_id

-- name: limit_workers
-- Workers with a WORKER_ID at or above it take nothing.
update batch set worker_limit = %(workers)s where batch_id = %(batch)s and state <> 'closed'

-- name: batch_source_names
select s.name from batch_source b join source s using (source_id) where b.batch_id = %(batch)s order by 1

-- name: results
-- The current items of the accounts that ended ok in the batch.
select i.user_id, s.name, i.kind, i.external_id, i.fetched_at, i.body
from task t
join item i on i.user_id = t.user_id and i.source_id = t.source_id
join source s on s.source_id = t.source_id
where t.batch_id = %(batch)s and t.state = 'ok'
    and (%(source)s::text is null or s.name = %(source)s) and (%(kind)s::text is null or i.kind = %(kind)s)
order by i.user_id, s.name, i.kind, i.external_id
