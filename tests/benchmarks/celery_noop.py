"""The Celery application of the comparison: one task that does nothing, acknowledged after it ran."""

from __future__ import annotations

import os

from celery import Celery  # type: ignore[import-untyped]  # it ships no types

PREFETCH = 100

app = Celery("celery_noop", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop() -> None:
    """Do nothing."""
