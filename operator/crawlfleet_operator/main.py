"""`crawlfleet-operator`: settings, metrics, kopf."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import kopf
from prometheus_client import REGISTRY

from crawlfleet import __version__, logs
from crawlfleet.errors import CrawlfleetError
from crawlfleet.serving import Server
from crawlfleet_operator import handlers, metrics
from crawlfleet_operator.cluster import Cluster
from crawlfleet_operator.controller import Controller
from crawlfleet_operator.database import Database
from crawlfleet_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

DEPTH = 20_000
"""The API server takes documents 10,000 levels deep; Python's own limit would let one of them end the operator."""


def main() -> int:
    """Run until SIGTERM."""
    try:
        settings = OperatorSettings.from_environment(os.environ)
        logs.set_up(as_json=settings.log_json)
        _quieten_kopf()
        sys.setrecursionlimit(DEPTH)
        asyncio.run(operate(settings))
    except CrawlfleetError as exc:
        print(f"crawlfleet-operator: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


def _quieten_kopf() -> None:
    """It tells of each event that it hands on, and hangs all its settings on each line."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_settings)


def _without_settings(record: logging.LogRecord) -> bool:
    for name in ("settings", "k8s_skip"):
        record.__dict__.pop(name, None)
    return True


async def operate(settings: OperatorSettings) -> None:
    """Watch and reconcile, for ever."""
    controller = Controller(settings, await Cluster.connect(), Database(settings.database_url))
    server = Server(settings.metrics_port, controller.is_well)
    REGISTRY.register(controller.collector)
    metrics.BUILD.labels(__version__).set(1)
    log.info("operator starts", extra={"namespaces": settings.namespaces or "all", "port": server.port})
    try:
        await kopf.operator(
            registry=handlers.registry(),
            settings=handlers.settings(),
            memo=controller,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
        )
    finally:
        server.stop()
