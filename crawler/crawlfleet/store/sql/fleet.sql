-- Workers and the fleet's clock: registration, renewal, control, housekeeping.

-- name: set_clock
-- The lengths of a tick, an expiry and a quarantine: one truth for all workers.
update fleet set tick_ms = %(tick_ms)s, expire_ticks = %(expire_ticks)s, quarantine_ticks = %(quarantine_ticks)s

-- name: register
-- A new registration for this process; the batch must exist.
insert into worker (renewed_tick, batch_id, ordinal, slots, pid, host)
select f.tick, b.batch_id, %(ordinal)s, %(slots)s, %(pid)s, %(host)s
from fleet f, batch b where b.batch_id = %(batch)s
returning worker_id

-- name: clock
-- How long a renewal is good for.
select tick_ms / 1000.0::float8, expire_ticks, quarantine_ticks from fleet

-- name: renew_permits
-- Only permits that the worker names are renewed: one whose take reply was lost expires. A row that a
-- commit is freeing right now is skipped, not waited for.
update permit p set renewed_tick = f.tick
from fleet f, (
    select h.egress_id, h.no from unnest(%(egresses)s::int[], %(nos)s::int[], %(leases)s::bigint[]) as w (egress_id, no, lease_id)
    join permit h on h.egress_id = w.egress_id and h.no = w.no
    where h.lease_id = w.lease_id and h.worker_id = %(worker)s
    for update of h skip locked
) mine
where p.egress_id = mine.egress_id and p.no = mine.no
returning p.lease_id

-- name: renew_worker
-- No row: this registration was ended by housekeeping, the process must stop.
update worker w set renewed_tick = f.tick
from fleet f where w.worker_id = %(worker)s and w.ended_at is null
returning f.tick

-- name: control
-- What a worker has to know each second, in one row.
select b.state::text, b.stop::text, w.draining, w.ended_at is not null,
    coalesce((
        select jsonb_object_agg(e.egress_id, e.cut)
        from egress e join batch_source s using (source_id) where s.batch_id = b.batch_id
    ), '{}')
from worker w join batch b using (batch_id) where w.worker_id = %(worker)s

-- name: end_worker
-- The process says good-bye; its last turn has freed its permits.
update worker set ended_at = now() where worker_id = %(worker)s and ended_at is null

-- name: bury_worker
-- The parent saw this process die (its sockets are closed): its permits need no quarantine.
update permit p set renewed_tick = f.tick - f.expire_ticks - f.quarantine_ticks
from fleet f, (
    select h.egress_id, h.no from permit h join worker w using (worker_id)
    where w.batch_id = %(batch)s and w.host = %(host)s and w.pid = %(pid)s
    for update of h skip locked
) dead
where p.egress_id = dead.egress_id and p.no = dead.no

-- name: try_housekeeping
-- One housekeeper at a time, whoever it is; the lock dies with the transaction.
select pg_try_advisory_xact_lock(%(lock)s)

-- name: advance_tick
-- At most one tick a tick length. A clock that was set back starts a new count without a tick.
update fleet
set tick = tick + (clock_timestamp() >= ticked_at)::int, ticked_at = clock_timestamp()
where clock_timestamp() >= ticked_at + make_interval(secs => tick_ms / 1000.0) or clock_timestamp() < ticked_at
returning tick

-- name: vacuum_permits
-- A few rows that are rewritten thousands of times a second: autovacuum comes too seldom. Outside a transaction.
vacuum (skip_locked, truncate off) permit

-- name: rescue
-- Permits not renewed for expiry and quarantine: free them, charge the task a crash, or end it.
with lost as materialized (
    select p.egress_id, p.no, p.lease_id, p.batch_id, p.task_no
    from permit p, fleet f
    where p.lease_id is not null and f.tick - p.renewed_tick >= f.expire_ticks + f.quarantine_ticks
    order by p.egress_id, p.no
    for update of p skip locked
), freed as (
    update permit p
    set lease_id = null, worker_id = null, user_id = null, renewed_tick = null, cut = null, taken_at = null,
        batch_id = null, task_no = null
    from lost where p.egress_id = lost.egress_id and p.no = lost.no
), told as (
    insert into failure (lease_id, batch_id, task_no, verdict, reason, detail)
    select lease_id, batch_id, task_no, 'crashed', 'WorkerLost', 'the worker stopped renewing this crawl''s permit'
    from lost
)
update task t
set crashes = t.crashes + 1, verdict = 'crashed', run_after = null,
    egress_id = coalesce((
        select k.egress_id from track k where k.source_id = t.source_id and k.user_id = t.user_id
    ), t.egress_id),
    state = case
        when b.stop <> 'none' then 'cancelled'
        when t.crashes + 1 > (s.settings ->> 'crashed')::int then 'dead'
        else 'ready'
    end::task_state
from lost, batch b, batch_source s
where t.batch_id = lost.batch_id and t.task_no = lost.task_no and t.state = 'leased'
    and b.batch_id = lost.batch_id and s.batch_id = lost.batch_id and s.source_id = t.source_id
returning t.batch_id, t.task_no

-- name: end_silent_workers
-- A registration as silent as that holds nothing any more.
update worker w set ended_at = now()
from fleet f
where w.ended_at is null and f.tick - w.renewed_tick >= f.expire_ticks + f.quarantine_ticks
    and not exists (select from permit p where p.worker_id = w.worker_id)
returning w.worker_id

-- name: promote
-- Waiting tasks whose time has come are ready again, at the egress their account has now (if it was not purged).
update task t
set state = 'ready', run_after = null,
    egress_id = coalesce((
        select k.egress_id from track k where k.source_id = t.source_id and k.user_id = t.user_id
    ), t.egress_id)
where t.batch_id = %(batch)s
    and t.task_no = any(array(
        select w.task_no from task w
        where w.batch_id = %(batch)s and w.state = 'waiting' and w.run_after <= now()
        order by w.run_after limit 5000
        for update skip locked
    ))

-- name: move_accounts
-- Sticky until here: accounts of an egress that was removed, or cut again and again, move to a good one.
with lost as materialized (
    select e.egress_id, e.source_id from egress e
    where (e.removed or e.cuts_in_row >= %(banned_after)s)
        and exists (select from track k where k.egress_id = e.egress_id)
), good as materialized (
    select e.egress_id, e.source_id, row_number() over w - 1 as k, count(*) over (partition by e.source_id) as n
    from egress e, generate_series(1, greatest(e.cap, 1))
    where not e.removed and e.cuts_in_row = 0 and e.source_id in (select source_id from lost)
    window w as (partition by e.source_id order by e.egress_id)
), chosen as materialized (
    select k.source_id, k.user_id, k.egress_id as old, row_number() over (partition by k.source_id order by k.user_id) as no
    from track k join lost using (egress_id)
    order by k.source_id, k.user_id limit 5000
)
update track t set egress_id = g.egress_id
from chosen c join good g on g.source_id = c.source_id and g.k = c.no %% g.n
where t.source_id = c.source_id and t.user_id = c.user_id and t.egress_id = c.old

-- name: move_ready_tasks
-- Ready tasks follow their account.
update task t set egress_id = k.egress_id
from track k
where t.batch_id = %(batch)s and k.source_id = t.source_id and k.user_id = t.user_id
    and t.task_no = any(array(
        select r.task_no from task r join track a using (source_id, user_id)
        join egress e on e.egress_id = r.egress_id
        where r.batch_id = %(batch)s and r.state = 'ready' and a.egress_id <> r.egress_id
            and (e.removed or e.cuts_in_row >= %(banned_after)s)
        limit 5000
        for update of r skip locked
    ))

-- name: open_batches
-- The batches that housekeeping looks after.
select batch_id, stop <> 'none', clock_timestamp() - counted_at >= make_interval(secs => least(5, 0.5 + total / 20000.0))
from batch where state = 'running'

-- name: cancel_unbegun
-- A stopped batch gives up what has not begun, a chunk at a time.
update task set state = 'cancelled', run_after = null
where batch_id = %(batch)s and task_no = any(array(
    select task_no from task
    where batch_id = %(batch)s and state in ('ready', 'waiting')
    order by task_no limit 5000
    for update skip locked
))

-- name: lock_batch
-- First half of closing and of retrying: whoever holds this row decides.
select state::text, round from batch where batch_id = %(batch)s for no key update

-- name: has_open_tasks
-- Second half, a statement of its own: it must see what was committed while the lock was waited for.
select exists (select from task where batch_id = %(batch)s and state = 'ready')
    or exists (select from task where batch_id = %(batch)s and state = 'waiting')
    or exists (select from permit where batch_id = %(batch)s)

-- name: close_batch
update batch set state = 'closed', closed_at = now() where batch_id = %(batch)s and state = 'running'

-- name: forget_progress
delete from progress where batch_id = %(batch)s

-- name: count_progress
insert into progress (batch_id, source_id, state, verdict, tasks)
select batch_id, source_id, state, verdict, count(*) from task where batch_id = %(batch)s group by 1, 2, 3, 4

-- name: stamp_progress
update batch set counted_at = clock_timestamp() where batch_id = %(batch)s

-- name: forget_items
-- Personal data past its source's retention, a chunk at a time.
delete from item i
using (
    select o.user_id, o.source_id, o.kind, o.external_id
    from source s cross join lateral (
        select * from item where source_id = s.source_id and fetched_at < now() - make_interval(days => s.retain_days)
        order by fetched_at limit 5000
    ) o
    where s.retain_days is not null
) old
where i.user_id = old.user_id and i.source_id = old.source_id and i.kind = old.kind and i.external_id = old.external_id

-- name: retired_batches
-- Closed, and past their retention.
select batch_id from batch
where state = 'closed' and retain_s is not null and closed_at + make_interval(secs => retain_s) < now()

-- name: delete_tasks
delete from task where batch_id = %(batch)s and task_no = any(array(
    select task_no from task where batch_id = %(batch)s order by task_no limit 5000
))

-- name: delete_failures
delete from failure where batch_id = %(batch)s

-- name: delete_batch
delete from batch where batch_id = %(batch)s
