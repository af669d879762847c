-- Workers and the fleet's clock: registration, renewal, control, housekeeping.

-- name: set_clock
-- The lengths of a tick, an expiry and a quarantine: one truth for all workers.
update fleet set tick_ms = %(tick_ms)s, expire_ticks = %(expire_ticks)s, quarantine_ticks = %(quarantine_ticks)s

-- name: register
-- A new registration for this process; the batch must exist.
insert into worker (renewed_tick, batch_id, ordinal, slots, pid, host, pid_space)
select f.tick, b.batch_id, %(ordinal)s, %(slots)s, %(pid)s, %(host)s, %(pid_space)s
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
    for no key update of h skip locked
) mine
where p.egress_id = mine.egress_id and p.no = mine.no
returning p.lease_id

-- name: renew_worker
-- No row: this registration was ended by housekeeping, the process must stop.
update worker w set renewed_tick = f.tick, unable = %(unable)s::smallint[]
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
-- The process says good-bye. What it still holds (it had to stop itself) is rescued.
update worker set ended_at = now() where worker_id = %(worker)s and ended_at is null

-- name: bury_worker
-- The parent saw this process die (its sockets are closed): its permits need no quarantine. Waits for a turn that the
-- server has not given up yet.
update permit p set renewed_tick = f.tick - f.expire_ticks - f.quarantine_ticks
from fleet f, (
    select h.egress_id, h.no from permit h join worker w using (worker_id)
    where w.batch_id = %(batch)s and w.pid_space = %(pid_space)s and w.pid = %(pid)s
    order by h.egress_id, h.no
    for update of h
) dead
where p.egress_id = dead.egress_id and p.no = dead.no

-- name: end_buried
-- Its registration ends with it, so that nobody counts on it any more.
update worker set ended_at = now()
where batch_id = %(batch)s and pid_space = %(pid_space)s and pid = %(pid)s and ended_at is null

-- name: claim_round
-- One round of chores an interval for the whole fleet, whoever asks first (or after the clock was set back).
update fleet set housekept_at = clock_timestamp()
where clock_timestamp() >= housekept_at + make_interval(secs => %(seconds)s::float8) or clock_timestamp() < housekept_at
returning true

-- name: try_housekeeping
-- One housekeeper at a time, whoever it is; the lock dies with the transaction.
select pg_try_advisory_xact_lock(%(lock)s)

-- name: await_housekeeping
-- The same lock, waited for.
select pg_advisory_xact_lock(%(lock)s)

-- name: advance_tick
-- At most one tick a tick length. A clock that was set back starts a new count without a tick.
update fleet
set tick = tick + (clock_timestamp() >= ticked_at)::int, ticked_at = clock_timestamp()
where clock_timestamp() >= ticked_at + make_interval(secs => tick_ms / 1000.0) or clock_timestamp() < ticked_at
returning tick

-- name: undo_step_back
-- The clock was set back: what is reserved and cooling at the egresses would last longer by as much.
with mine as materialized (
    select e.egress_id, f.ticked_at - clock_timestamp() as step
    from egress e cross join fleet f where clock_timestamp() < f.ticked_at
    order by e.egress_id
    for no key update of e
)
update egress e set next_at = e.next_at - mine.step, cool_until = e.cool_until - mine.step
from mine where e.egress_id = mine.egress_id

-- name: vacuum_permits
-- A few rows that are rewritten thousands of times a second: autovacuum comes too seldom. Outside a transaction.
vacuum (skip_locked, truncate off) permit

-- name: free_lost_permits
-- Permits not renewed for expiry and quarantine are free again; who held what goes to `rescue_tasks`.
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
)
select lease_id, batch_id, task_no from lost

-- name: rescue_tasks
-- The task of each lost permit is charged a crash and is ready again, or dead, or cancelled with its batch.
with told as (
    insert into failure (lease_id, batch_id, task_no, verdict, reason, detail)
    select lease_id, batch_id, task_no, 'crashed', 'WorkerLost', 'the worker stopped renewing this crawl''s permit'
    from unnest(%(leases)s::bigint[], %(batches)s::int[], %(nos)s::int[]) as l (lease_id, batch_id, task_no)
)
update task t
set crashes = t.crashes + 1, verdict = 'crashed', run_after = null,
    egress_id = coalesce((
        select k.egress_id from track k where k.source_id = t.source_id and k.user_id = t.user_id
    ), t.egress_id),
    state = case
        when b.stop <> 'none' then 'cancelled'
        when t.crashes < coalesce((s.settings ->> 'crashed')::int, 0) then 'ready'
        else 'dead'
    end::task_state
from unnest(%(batches)s::int[], %(nos)s::int[]) as l (batch_id, task_no), batch b, batch_source s
where t.batch_id = l.batch_id and t.task_no = l.task_no and t.state = 'leased'
    and b.batch_id = l.batch_id and s.batch_id = l.batch_id and s.source_id = t.source_id

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

-- name: left_egresses
-- Egresses that accounts have to leave, removed or cut again and again, where their source has a good one.
select e.egress_id from egress e
where (e.removed or e.cuts_in_row >= %(banned_after)s)
    and exists (select from egress g where g.source_id = e.source_id and not g.removed and g.cuts_in_row < %(banned_after)s)
    and exists (select from track k where k.egress_id = e.egress_id)

-- name: move_accounts
-- Sticky until here: the accounts of these egresses are spread over the good ones of their source, a chunk at a time.
with good as materialized (
    select e.egress_id, e.source_id, row_number() over w - 1 as k, count(*) over (partition by e.source_id) as n
    from egress e, generate_series(1, greatest(e.cap, 1))
    where not e.removed and e.cuts_in_row < %(banned_after)s
    window w as (partition by e.source_id order by e.egress_id)
), leaving as materialized (
    select k.source_id, k.user_id from track k where k.egress_id = any(%(egresses)s::int[])
    order by k.source_id, k.user_id limit 5000
    for no key update
), chosen as materialized (
    select source_id, user_id, row_number() over (partition by source_id order by user_id) as no from leaving
)
update track t set egress_id = g.egress_id
from chosen c join good g on g.source_id = c.source_id and g.k = c.no %% g.n
where t.source_id = c.source_id and t.user_id = c.user_id

-- name: move_ready_tasks
-- Ready tasks follow their account. As an array, the egresses are known before any task is read: mostly there are none.
update task t set egress_id = k.egress_id
from track k
where t.batch_id = %(batch)s and k.source_id = t.source_id and k.user_id = t.user_id
    and t.task_no = any(array(
        select r.task_no from task r join track a using (source_id, user_id)
        where r.batch_id = %(batch)s and r.state = 'ready' and a.egress_id <> r.egress_id
            and r.egress_id = any(array(
                select egress_id from egress where removed or cuts_in_row >= %(banned_after)s
            ))
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
select state::text, coalesce(closed_at + make_interval(secs => retain_s) < now(), false) as retired from batch where batch_id = %(batch)s for no key update

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
-- Personal data that the shop has not shown for its source's retention, a chunk at a time; what a commit is at waits.
delete from item i
using (
    select o.user_id, o.source_id, o.kind, o.external_id
    from source s cross join lateral (
        select * from item where source_id = s.source_id and seen_on < current_date - s.retain_days
        order by seen_on limit 5000
        for update skip locked
    ) o
    where s.retain_days is not null
) old
where i.user_id = old.user_id and i.source_id = old.source_id and i.kind = old.kind and i.external_id = old.external_id

-- name: retired_batches
-- Closed, and past their retention.
select batch_id from batch
where state = 'closed' and retain_s is not null and closed_at + make_interval(secs => retain_s) < now()

-- name: delete_tasks
-- A chunk, with the failures of its tasks.
with chunk as materialized (
    select task_no from task where batch_id = %(batch)s order by task_no limit 5000
), forgotten as (
    delete from failure where batch_id = %(batch)s and task_no in (select task_no from chunk)
)
delete from task where batch_id = %(batch)s and task_no in (select task_no from chunk)

-- name: delete_batch
delete from batch where batch_id = %(batch)s
