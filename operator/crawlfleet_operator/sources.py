"""Reconciles one CrawlSource: its limits and egresses into the database, and what became of them into its status."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from hashlib import sha256

from crawlfleet.apply import adapters, declare
from crawlfleet.credentials import KeyRing
from crawlfleet.errors import BadInput
from crawlfleet.manifests import CrawlSource, Manifests, Secret
from crawlfleet.statuses import CrawlSourceStatus, Permits
from crawlfleet.store import oversight
from crawlfleet.store.connection import Connection
from crawlfleet.store.oversight import SourceRow
from crawlfleet.store.sources import TakenExit, TakenName
from crawlfleet_operator.build import Document
from crawlfleet_operator.cluster import Cluster, Refused
from crawlfleet_operator.database import Database
from crawlfleet_operator.plan import RETRY_S
from crawlfleet_operator.settings import OperatorSettings
from crawlfleet_operator.sight import Key, Sight
from crawlfleet_operator.status import Said, dated
from crawlfleet_operator.statuswriter import StatusWriter
from crawlfleet_operator.subjects import parsed
from crawlfleet_operator.times import written

log = logging.getLogger(__name__)

SECRETS_S = 60.0
"""How often the Secrets of a source's proxies are read again."""
PROXY_KEYS = ("url", "username", "password")


@dataclass(frozen=True)
class _Outcome:
    """What became of a declaration: of which spec and Secrets, and why it was refused."""

    fingerprint: str
    at_s: float
    reason: str = "Declared"
    message: str = "its limits hold for the whole fleet"

    @property
    def is_well(self) -> bool:
        return self.reason == "Declared"


class Sources:
    """Owns what was declared last of each source."""

    def __init__(
        self,
        cluster: Cluster,
        database: Database,
        sight: Sight,
        writer: StatusWriter,
        settings: OperatorSettings,
        *,
        rows: Callable[[], dict[str, SourceRow]],
        declared: Callable[[Key], Awaitable[None]],
        mark_in: Callable[[Key, float], None],
        now: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._database = database
        self._sight = sight
        self._writer = writer
        self._settings = settings
        self._rows = rows
        self._declared = declared
        self._mark_in = mark_in
        self._now = now
        self._outcomes: dict[Key, _Outcome] = {}

    async def reconcile(self, key: Key) -> None:
        """Declare it if it has changed, and tell how it fares."""
        document = self._sight.get(key)
        if document is None or document["metadata"].get("deletionTimestamp"):
            return
        outcome = await self._bring(key, document)
        self._outcomes[key] = outcome
        await self._writer.write(key, document["metadata"]["uid"], self._describe(key, document, outcome))
        if not outcome.is_well:
            self._mark_in(key, RETRY_S)
        elif _has_proxies(document):
            self._mark_in(key, SECRETS_S)

    def doubt(self) -> None:
        """The database was away, and may have come back as it was before: each one is declared again."""
        self._outcomes = {key: replace(outcome, fingerprint="") for key, outcome in self._outcomes.items()}

    def refusal(self, key: Key) -> str | None:
        """Why it is not available, if it was refused."""
        outcome = self._outcomes.get(key)
        return None if outcome is None or outcome.is_well else outcome.message

    async def forget(self, key: Key) -> None:
        """Its CrawlSource is gone: others may have its name and its exits, once no open batch crawls by them."""
        self._outcomes.pop(key, None)
        await self._database(oversight.release_source, key.name, key.namespace)

    async def _bring(self, key: Key, document: Document) -> _Outcome:
        try:
            source = parsed(document, CrawlSource)
            secrets = await self._secrets(key.namespace, source)
            manifests = Manifests(sources={key.name: source}, secrets=secrets)
            fingerprint = _fingerprint(source, secrets)
            last = self._outcomes.get(key)
            if last is not None and last.is_well and last.fingerprint == fingerprint and self._is_ours(key):
                return last
            adapters(manifests)
            await self._database(_declare, self._settings, manifests, key.namespace)
        except BadInput as exc:
            return _Outcome("", self._now(), _reason(exc), str(exc))
        log.info("declared", extra={"source": str(key)})
        await self._declared(key)
        return _Outcome(fingerprint, self._now())

    def _is_ours(self, key: Key) -> bool:
        """Whether it belongs to us as far as is known."""
        row = self._rows().get(key.name)
        return row is None or row.namespace == key.namespace

    async def _secrets(self, namespace: str, source: CrawlSource) -> dict[str, Secret]:
        """The Secrets of its proxies. Raises BadInput for one that is not there."""
        names = {egress.proxy_secret_ref.name for egress in source.spec.egresses if egress.proxy_secret_ref}
        return {name: await self._secret(namespace, name) for name in sorted(names)}

    async def _secret(self, namespace: str, name: str) -> Secret:
        try:
            document = await self._cluster.get("secrets", namespace, name)
        except Refused as exc:
            if not exc.is_gone:
                raise
            raise _SecretMissing(f"there is no Secret {name} in namespace {namespace} for its proxy") from exc
        return Secret.model_validate(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "data": document.get("data") or {},
            }
        )

    def _describe(self, key: Key, document: Document, outcome: _Outcome) -> CrawlSourceStatus:
        generation = document["metadata"]["generation"]
        row = self._rows().get(key.name)
        ours = row if row is not None and row.namespace == key.namespace else None
        before = self._writer.before(key, CrawlSourceStatus)
        said = (_available(outcome), _throttled(ours))
        return CrawlSourceStatus(
            observed_generation=generation,
            conditions=tuple(dated(one, before, generation, self._now()) for one in said),
            permits=Permits(total=ours.total, held=ours.held, cooling=ours.cooling) if ours else None,
            throttled=ours.throttled if ours else None,
            blocked=ours.blocked if ours else None,
        )


def _available(outcome: _Outcome) -> Said:
    return Said("Available", "True" if outcome.is_well else "False", outcome.reason, outcome.message)


def _throttled(row: SourceRow | None) -> Said:
    if row is None or row.cool_until is None:
        return Said("Throttled", "False", "Open")
    return Said("Throttled", "True", "Cooling", f"every egress rests until {written(row.cool_until)}")


class _SecretMissing(BadInput):
    """The Secret of a proxy is not there."""


def _declare(conn: Connection, settings: OperatorSettings, manifests: Manifests, namespace: str) -> None:
    declare(conn, KeyRing.load(settings.keys_file), manifests, namespace=namespace)


def _reason(exc: BadInput) -> str:
    match exc:
        case TakenName():
            return "NameTaken"
        case TakenExit():
            return "ExitTaken"
        case _SecretMissing():
            return "SecretMissing"
    return "Invalid"


def _fingerprint(source: CrawlSource, secrets: dict[str, Secret]) -> str:
    """What was declared, without a secret in it."""
    values = {name: {key: secret.text(key) for key in PROXY_KEYS} for name, secret in secrets.items()}
    return sha256(f"{source.spec.model_dump_json()}{values}".encode()).hexdigest()


def _has_proxies(document: Document) -> bool:
    return any("proxySecretRef" in egress for egress in document["spec"].get("egresses", ()))
