"""What kopf calls: it watches, we are told. Only events: they leave no mark on an object, and need no finalizer."""

from __future__ import annotations

from typing import Any

import kopf

from crawlfleet.manifests import GROUP, VERSION
from crawlfleet_operator.build import MANAGED, Document
from crawlfleet_operator.controller import Controller
from crawlfleet_operator.sight import BATCHES, JOBS, SOURCES

REQUEST_S = 30.0
RESTART_S = 5.0
"""After a start that failed, as by an API server that is just being restarted: nothing is watched until then."""
PREFIX = f"operator.{GROUP}"


def registry() -> kopf.OperatorRegistry:
    """What is watched, and who is told; the Controller is kopf's memo."""
    made = kopf.OperatorRegistry()
    kopf.on.login(registry=made)(login)
    kopf.on.startup(registry=made, backoff=RESTART_S)(begin)
    kopf.on.cleanup(registry=made)(end)
    kopf.on.event(GROUP, VERSION, BATCHES, registry=made)(batch_event)
    kopf.on.event(GROUP, VERSION, SOURCES, registry=made)(source_event)
    kopf.on.event("batch", "v1", JOBS, registry=made)(job_event)
    return made


def settings() -> kopf.OperatorSettings:
    """kopf's settings as far as they are not its defaults."""
    made = kopf.OperatorSettings()
    made.peering.standalone = True
    made.posting.enabled = False
    made.scanning.disabled = True
    made.persistence.finalizer = f"{PREFIX}/finalizer"
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    made.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=PREFIX)
    made.networking.request_timeout = REQUEST_S
    made.watching.label_selectors["batch", JOBS] = MANAGED
    return made


async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


async def begin(memo: Controller, **_: Any) -> None:
    await memo.start()


async def end(memo: Controller, **_: Any) -> None:
    await memo.stop()


async def batch_event(event: kopf.RawEvent, memo: Controller, **_: Any) -> None:
    await memo.saw(BATCHES, event["type"], _document(event))


async def source_event(event: kopf.RawEvent, memo: Controller, **_: Any) -> None:
    await memo.saw(SOURCES, event["type"], _document(event))


async def job_event(event: kopf.RawEvent, memo: Controller, **_: Any) -> None:
    await memo.saw(JOBS, event["type"], _document(event))


def _document(event: kopf.RawEvent) -> Document:
    return dict(event["object"])
