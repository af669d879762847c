"""What the containers of a pod run. Settings come from the environment, since a pod has no other options."""

from __future__ import annotations

import logging
import os

from crawlfleet import logs
from crawlfleet.browser.supervisor import run_chrome
from crawlfleet.commands.place import Arguments
from crawlfleet.settings import ChromeSettings, WorkerSettings
from crawlfleet.worker import run_worker

log = logging.getLogger(__name__)


def worker(_: Arguments) -> int:
    settings = WorkerSettings.from_environment(os.environ)
    logs.set_up(as_json=settings.log_json)
    log.info("worker starts", extra={"worker_id": settings.worker_id, "batch": settings.batch})
    return run_worker(settings)


def chrome(_: Arguments) -> int:
    settings = ChromeSettings.from_environment(os.environ)
    logs.set_up(as_json=settings.log_json)
    return run_chrome(settings)
