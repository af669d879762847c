"""From manifests to the database: declare sources, import accounts, plan batches. Local mode and operator share it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby

from crawlfleet import planner
from crawlfleet.accounts import Account, UnknownSource
from crawlfleet.credentials import KeyRing, account_context, proxy_context
from crawlfleet.errors import BadInput
from crawlfleet.manifests import CrawlBatch, CrawlSource, Manifests, egress_caps, exit_identity, proxy_url
from crawlfleet.planner import BatchPlan, Selector
from crawlfleet.sources import Adapter, Credentials, adapter_names, load_adapter
from crawlfleet.store import batches
from crawlfleet.store.accounts import SealedAccount, locked_imports, put_accounts
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.sources import EgressSpec, Settings, lock_sources, put_source, source_id_of

PACE_HEADROOM = 0.95
"""Requests are paced a little below the limit, so that jitter on the way never shows the shop more than it."""
IMPORT_CHUNK = 1000


def declare(conn: Connection, keys: KeyRing, manifests: Manifests, *, namespace: str | None = None) -> None:
    """Write the manifests' sources and egresses, all or none; they are live at once. `namespace` is theirs in a cluster.

    Raises BadInput for an exit or a name that another source uses, and for an unknown adapter.
    """
    with transaction(conn):
        lock_sources(conn, manifests.sources)
        for name, source in sorted(manifests.sources.items()):
            put_source(
                conn,
                name,
                _egresses(keys, manifests, source),
                retain_days=source.spec.retention_days,
                namespace=namespace,
            )


def adapters(manifests: Manifests) -> dict[str, Adapter]:
    """Source name → its adapter. Raises BadInput if there is none, or it does not take these options."""
    return {name: _adapter(source, manifests) for name, source in manifests.sources.items()}


def _adapter(source: CrawlSource, manifests: Manifests) -> Adapter:
    field = "spec.adapter"
    try:
        made = load_adapter(source.spec.adapter)
        field = "spec.options"
        return made(source.spec.options)
    except BadInput as exc:
        raise BadInput(f"{manifests.place_of(source)}: {field}: {exc}") from exc


def _egresses(keys: KeyRing, manifests: Manifests, source: CrawlSource) -> list[EgressSpec]:
    spec, caps, name = source.spec, egress_caps(source.spec), source.metadata.name
    rate = spec.requests_per_second
    base_url = spec.base_url or load_adapter(spec.adapter).official_url
    found = []
    for egress in spec.egresses:
        url = proxy_url(manifests, egress)
        found.append(
            EgressSpec(
                name=egress.name,
                exit=exit_identity(spec.adapter, base_url, url),
                proxy=keys.seal({"url": url}, proxy_context(name, egress.name)) if url else None,
                cap=caps[egress.name],
                gap_us=round(1e6 / (rate * PACE_HEADROOM)) if rate else 0,
                cool_first_s=spec.cool_down_seconds.first,
                cool_longest_s=spec.cool_down_seconds.longest,
            )
        )
    return found


def settings_of(source: CrawlSource) -> Settings:
    """What a batch keeps of a source."""
    spec = source.spec
    return Settings(
        adapter=spec.adapter,
        base_url=spec.base_url,
        options=dict(spec.options),
        job_timeout_s=spec.job_timeout_seconds,
        retry=spec.budgets.retry,
        crashed=spec.budgets.crashed,
        throttled_s=spec.budgets.throttled_seconds,
    )


def local_plan(batch: CrawlBatch, manifests: Manifests) -> BatchPlan:
    """The plan of a local batch. Its uid is its name and spec: the same file resumes the same batch."""
    spec, name = batch.spec, batch.metadata.name
    identity = name + spec.model_dump_json(exclude={"suspend", "stop", "max_concurrent", "workers"})
    digest = sha256(identity.encode()).hexdigest()
    plan = plan_of(batch, manifests, uid=f"local/{name}/{digest[:12]}")
    return replace(plan, retain_s=spec.ttl_seconds_after_finished, namespace=None)


def plan_of(batch: CrawlBatch, manifests: Manifests, *, uid: str) -> BatchPlan:
    """What is to be planned for that batch, with the settings that its sources have now. It is kept until it is forgotten."""
    spec, users = batch.spec, batch.spec.users
    modulo = users.id_modulo
    return BatchPlan(
        uid=uid,
        name=batch.metadata.name,
        workers=spec.workers,
        selector=Selector(
            tiers=users.tiers and list(users.tiers),
            ids=users.ids and list(users.ids),
            divisor=modulo.divisor if modulo else None,
            remainder=modulo.remainder if modulo else None,
        ),
        sources={source: settings_of(manifests.sources[source]) for source in spec.sources},
        namespace=batch.metadata.namespace,
    )


def check_namesakes(conn: Connection, plan: BatchPlan, *, cancel: str) -> bool:
    """Whether this is a new batch of a name that another spec had before: an edited file.

    Raises BadInput while that one is open; `cancel` is the command that ends it.
    """
    others = batches.namesakes(conn, plan.name, plan.uid)
    if not others or batches.find(conn, plan.uid) is not None:
        return False
    if any(state != "closed" for _, state in others):
        raise BadInput(
            f"a batch {plan.name} of another spec is still open: run it to its end with the file it began with, or end it"
            f" by `{cancel}`, or give this one another name"
        )
    return True


def plan_batch(conn: Connection, plan: BatchPlan, workers: int) -> int:
    """Its tasks are ready for so many workers afterwards; returns its id."""
    batch_id = planner.plan(conn, plan)
    batches.limit_workers(conn, batch_id, workers)
    return batch_id


def credential_check(
    known_sources: Collection[str], adapters: Mapping[str, Adapter]
) -> Callable[[str, Credentials], None]:
    """A check of one account line: its source is known, and its adapter can work with the credentials.

    A source that was never declared may be an adapter's own name: accounts may come before their CrawlSource.
    """
    by_name = {name: load_adapter(name)({}) for name in adapter_names()} | dict(adapters)

    def check(source: str, credentials: Credentials) -> None:
        if source in by_name:
            by_name[source].check_credentials(credentials)
        elif source not in known_sources:
            known = ", ".join(sorted({*known_sources, *by_name}))
            raise UnknownSource(
                f"there is no source {source!r}; known: {known}; declare another one with `crawlfleet run -f FILE` of its"
                " CrawlSource"
            )

    return check


def import_accounts(conn: Connection, keys: KeyRing, accounts: Iterable[Account]) -> tuple[int, int]:
    """Insert or update accounts: (lines, accounts whose credentials are new).

    The whole file is read first: of a file with a bad line nothing is written. Credentials that equal those
    last imported leave the stored ones alone, which a shop may have rotated since.
    """
    ordered = sorted(accounts, key=lambda a: (a.source, a.user_id))
    renewed = 0
    for source, group in groupby(ordered, key=lambda a: a.source):
        mine = list(group)
        for start in range(0, len(mine), IMPORT_CHUNK):
            renewed += _import_chunk(conn, keys, source, mine[start : start + IMPORT_CHUNK])
    return len(ordered), renewed


def _import_chunk(conn: Connection, keys: KeyRing, source: str, chunk: Sequence[Account]) -> int:
    """One transaction, rows locked in the order of their keys."""
    sealed = {a.user_id: _seal(keys, a) for a in chunk}
    with transaction(conn):
        source_id = source_id_of(conn, source)
        imported = locked_imports(conn, source_id, list(sealed))
        renewed = {
            a.user_id
            for a in chunk
            if a.user_id in imported
            and keys.open(imported[a.user_id], account_context(source, a.user_id)) != a.credentials
        }
        put_accounts(conn, source_id, list(sealed.values()), renewed)
    return len(renewed) + len(chunk) - len(imported)


def _seal(keys: KeyRing, account: Account) -> SealedAccount:
    context = account_context(account.source, account.user_id)
    return SealedAccount(
        user_id=account.user_id,
        subscription=account.subscription,
        last_login_at=account.last_login_at,
        credentials=keys.seal(account.credentials, context),
        imported=keys.seal(account.credentials, context),
    )
