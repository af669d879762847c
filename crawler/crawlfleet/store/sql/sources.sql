-- Sources and their egresses.

-- name: add_source
insert into source (name) values (%(name)s) on conflict (name) do nothing

-- name: retain_items
update source set retain_days = %(days)s where source_id = %(source)s

-- name: find_source
select source_id from source where name = %(name)s for no key update

-- name: source_names
select name from source order by name

-- name: exit_owner
-- Another source that already crawls through this exit.
select s.name, e.name from egress e join source s using (source_id)
where e.exit = %(exit)s and not e.removed and s.name <> %(name)s

-- name: lock_all_egresses
-- Before any of them is changed in the manifest's order: a commit that cuts two of them locks by id.
select from egress order by egress_id for no key update

-- name: put_egress
-- Known by its exit: under another name it keeps its permits, pace and cool-down. Cap and pace change under running crawls.
insert into egress as e (source_id, name, exit, proxy, cap, gap_us, cool_first_s, cool_longest_s)
values (%(source)s, %(name)s, %(exit)s, %(proxy)s, %(cap)s, %(gap_us)s, %(cool_first_s)s, %(cool_longest_s)s)
on conflict (source_id, exit) do update
set name = excluded.name, proxy = excluded.proxy, cap = excluded.cap, gap_us = excluded.gap_us,
    cool_first_s = excluded.cool_first_s, cool_longest_s = excluded.cool_longest_s, removed = false
returning egress_id

-- name: add_permits
-- Rows up to the cap; a lowered cap keeps its rows, they are just not filled. Rows that are there are not even
-- tried: an insert would wait for the commit that is changing one, and that commit may wait for the egress.
insert into permit (egress_id, no, source_id)
select %(egress)s, no, %(source)s from generate_series(0, %(cap)s - 1) as no
where not exists (select from permit p where p.egress_id = %(egress)s and p.no = no.no)

-- name: remove_egresses
-- All of the source; those that the manifest names are put back in the same transaction, so that two may swap their exits.
-- Of the others running crawls finish, and housekeeping moves the accounts.
update egress set removed = true, cap = 0 where source_id = %(source)s

-- name: egresses
-- For a worker: how to get out.
select e.egress_id, e.source_id, s.name, e.name, e.proxy from egress e join source s using (source_id)
where source_id in (select source_id from batch_source where batch_id = %(batch)s)

-- name: batch_settings
select s.source_id, s.name, b.settings from batch_source b join source s using (source_id) where b.batch_id = %(batch)s

-- name: latest_adapters
-- The adapter of each source, as the newest batch that used it knew it.
select distinct on (s.name) s.name, b.settings ->> 'adapter'
from batch_source b join source s using (source_id) order by s.name, b.batch_id desc

-- name: sealed_proxies
-- For the rotation of keys; sorted, as everything that locks egresses.
select e.egress_id, s.name, e.name, e.proxy from egress e join source s using (source_id)
where e.proxy is not null
order by e.egress_id
for no key update of e

-- name: reseal_proxy
update egress set proxy = %(proxy)s where egress_id = %(egress)s
