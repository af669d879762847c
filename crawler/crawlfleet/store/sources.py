"""Sources, egresses and permits as the manifests want them, and as a worker reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crawlfleet.errors import BadInput
from crawlfleet.store.connection import Connection
from crawlfleet.store.queries import sql
from crawlfleet.verdicts import Budgets


class TakenName(BadInput):
    """Another namespace has a source of that name."""


class TakenExit(BadInput):
    """Another source goes out by that exit."""


@dataclass(frozen=True)
class EgressSpec:
    """One egress as it shall be. `proxy` is a sealed URL, None for direct; `gap_us` 0 means no pace."""

    name: str
    exit: str
    proxy: bytes | None
    cap: int
    gap_us: int
    cool_first_s: int
    cool_longest_s: int


@dataclass(frozen=True)
class Settings:
    """What a batch keeps of its source: a snapshot (`batch_source.settings`)."""

    adapter: str
    base_url: str | None
    options: dict[str, Any]
    job_timeout_s: float
    retry: int
    crashed: int
    throttled_s: float

    @property
    def budgets(self) -> Budgets:
        return Budgets(self.retry, self.crashed, self.throttled_s)


@dataclass(frozen=True)
class EgressRow:
    """How to get out: `proxy` is sealed."""

    egress_id: int
    source_id: int
    source: str
    name: str
    proxy: bytes | None


def put_source(
    conn: Connection,
    name: str,
    egresses: Sequence[EgressSpec],
    *,
    retain_days: int | None = None,
    namespace: str | None = None,
) -> int:
    """Make the source, its egresses and permits so. Politeness state survives.

    The caller owns the transaction, and has begun it with `lock_sources`.
    Items that the shop has not shown for `retain_days` are deleted; None keeps them. `namespace` is the CrawlSource's.
    Raises BadInput if another source already goes out by one of these exits, or if the name is another namespace's.
    """
    source_id = source_id_of(conn, name)
    if namespace is not None:
        _claim(conn, name, source_id, namespace)
    conn.execute(sql("retain_items"), {"source": source_id, "days": retain_days})
    conn.execute(sql("remove_egresses"), {"source": source_id})
    for egress in egresses:
        _refuse_shared_exit(conn, name, egress)
        egress_id = _one(conn, "put_egress", asdict(egress) | {"source": source_id})
        conn.execute(sql("add_permits"), {"egress": egress_id, "source": source_id, "cap": egress.cap})
    return source_id


def lock_sources(conn: Connection, names: Collection[str]) -> None:
    """Lock what `put_source` may change, before the first of several sources is put: sources, then egresses, in order."""
    for name in sorted(names):
        source_id_of(conn, name)
    conn.execute(sql("lock_all_egresses"))


def source_id_of(conn: Connection, name: str) -> int:
    """The source's id; it is added if it is new. Its row is locked until the transaction ends."""
    conn.execute(sql("add_source"), {"name": name})
    return _one(conn, "find_source", {"name": name})


def _claim(conn: Connection, name: str, source_id: int, namespace: str) -> None:
    if conn.execute(sql("claim_source"), {"source": source_id, "namespace": namespace}).fetchone() is None:
        owner = conn.execute(sql("owner_of_source"), {"name": name}).fetchone()
        raise TakenName(
            f"the source {name!r} belongs to the CrawlSource {name} in namespace {owner[0] if owner else 'unknown'}; names"
            " are unique in a database: give this one another"
        )


def _refuse_shared_exit(conn: Connection, name: str, egress: EgressSpec) -> None:
    owner = conn.execute(sql("exit_owner"), {"exit": egress.exit, "name": name}).fetchone()
    if owner:
        raise TakenExit(
            f"CrawlSource {name}: egress {egress.name!r} is the same exit ({egress.exit}) as egress {owner[1]!r} of"
            f" CrawlSource {owner[0]}. One exit has one cap: use that source, or another proxy."
        )


def _one(conn: Connection, statement: str, params: dict[str, Any]) -> int:
    row = conn.execute(sql(statement), params).fetchone()
    if row is None:
        raise LookupError(f"statement {statement} returned no row")
    return int(row[0])


def source_names(conn: Connection) -> list[str]:
    """The names of all sources that were ever declared."""
    return [name for (name,) in conn.execute(sql("source_names"))]


def latest_adapters(conn: Connection) -> list[tuple[str, str]]:
    """(source, adapter) of every source that a batch ever used."""
    return conn.execute(sql("latest_adapters")).fetchall()


def batch_settings(conn: Connection, batch_id: int) -> dict[int, tuple[str, Settings]]:
    """Source id → (name, settings) of a batch."""
    rows = conn.execute(sql("batch_settings"), {"batch": batch_id})
    return {source_id: (name, Settings(**settings)) for source_id, name, settings in rows}


def egresses(conn: Connection, batch_id: int) -> list[EgressRow]:
    """How to get out, for the sources of a batch."""
    return [EgressRow(*row) for row in conn.execute(sql("egresses"), {"batch": batch_id})]


def locked_proxies(conn: Connection) -> list[tuple[int, str, str, bytes]]:
    """(egress id, source, egress, sealed proxy) of every egress that has one; their rows are locked."""
    return [(i, source, name, bytes(proxy)) for i, source, name, proxy in conn.execute(sql("sealed_proxies"))]


def reseal_proxy(conn: Connection, egress_id: int, proxy: bytes) -> None:
    """The same proxy, sealed with another key."""
    conn.execute(sql("reseal_proxy"), {"egress": egress_id, "proxy": proxy})
