-- What an operator looks at, and the levers it sets.

-- name: overview
-- The batches of these namespaces (null: of all), or one of them, but for those whose CrawlBatch is gone. What is held and who is alive
-- only matters while it runs.
select b.uid, b.namespace, b.name, b.state::text, b.round, b.stop::text, b.worker_limit, b.max_concurrent, b.total,
    extract(epoch from b.closed_at)::float8,
    coalesce((select jsonb_agg(distinct k.settings ->> 'adapter') from batch_source k where k.batch_id = b.batch_id), '[]') as adapters,
    coalesce((select max((k.settings ->> 'job_timeout_s')::float8) from batch_source k where k.batch_id = b.batch_id), 0) as job_timeout_s,
    coalesce((
        select jsonb_agg(jsonb_build_array(s.name, p.state, p.verdict, p.tasks))
        from progress p join source s using (source_id) where p.batch_id = b.batch_id
    ), '[]') as counts,
    workers.first_at, coalesce(workers.alive, 0), coalesce(workers.held, '{}')
from batch b cross join fleet f
left join lateral (
    select min(w.first_at) as first_at, sum(w.alive)::int as alive, jsonb_object_agg(w.ordinal, w.permits) as held
    from (  -- a worker that was replaced may hold permits yet: two registrations with one WORKER_ID
        select w.ordinal, extract(epoch from min(w.started_at))::float8 as first_at,
            count(*) filter (where f.tick - w.renewed_tick <= 2) as alive,
            sum((select count(*) from permit p where p.worker_id = w.worker_id))::int as permits
        from worker w where w.batch_id = b.batch_id and w.ended_at is null
        group by w.ordinal
    ) w
) workers on b.state = 'running'
where b.namespace is not null and b.retain_s is null
    and (%(namespaces)s::text[] is null or b.namespace = any(%(namespaces)s))
    and (%(uid)s::text is null or b.uid = %(uid)s)

-- name: source_states
-- Every source with its permits. `cool_until` is when the first egress that cools is open again, if all of them cool.
select s.name, s.namespace, coalesce(e.total, 0), coalesce(e.held, 0), coalesce(e.cooling, 0), coalesce(e.blocked, 0),
    coalesce((select sum(p.tasks) from progress p join batch b using (batch_id)
        where p.source_id = s.source_id and b.state = 'running' and p.state = 'waiting' and p.verdict = 'throttled'), 0)::int,
    e.cool_until
from source s left join lateral (
    select sum(cap) filter (where not removed)::int as total,
        sum(cap) filter (where not removed and cool_until > now())::int as cooling,
        sum(cut)::int as blocked,
        sum((select count(*) from permit p where p.egress_id = e.egress_id and p.lease_id is not null))::int as held,
        case when bool_and(cool_until > now()) filter (where not removed)
            then extract(epoch from min(cool_until) filter (where not removed))::float8 end as cool_until
    from egress e where e.source_id = s.source_id
) e on true

-- name: set_levers
-- What the CrawlBatch says; null leaves what people said on the command line.
update batch
set worker_limit = %(worker_limit)s, max_concurrent = %(max_concurrent)s, stop = coalesce(%(stop)s::stop_mode, stop)
where uid = %(uid)s and state <> 'closed'

-- name: forget_batch
-- Its CrawlBatch is gone: what has not begun is given up, and the rest is deleted when its retention is over.
update batch set stop = case when state = 'closed' then stop else 'cancel' end, retain_s = %(retain_s)s
where uid = %(uid)s and namespace is not null and retain_s is null

-- name: orphaned_batches
-- Of these namespaces (null: of all), those that no CrawlBatch stands for any more and that nobody has forgotten yet.
select uid from batch
where namespace is not null and (%(namespaces)s::text[] is null or namespace = any(%(namespaces)s))
    and retain_s is null and uid <> all(%(uids)s)

-- name: claim_source
-- The name belongs to the first namespace that declares it. No row: to another one.
update source set namespace = %(namespace)s
where source_id = %(source)s and (namespace is null or namespace = %(namespace)s)
returning source_id

-- name: owner_of_source
select namespace from source where name = %(name)s

-- name: release_source
-- Its CrawlSource is gone: name and exits are free again, unless an open batch still crawls by them.
update source s set namespace = null
where s.name = %(name)s and s.namespace = %(namespace)s
    and not exists (select from batch_source k join batch b using (batch_id) where k.source_id = s.source_id and b.state <> 'closed')
returning source_id

-- name: claimed_sources
select name, namespace from source where namespace is not null and (%(namespaces)s::text[] is null or namespace = any(%(namespaces)s))
