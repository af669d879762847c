"""How long a crawler pod takes from its creation, by a Job or by a CrawlBatch, to its first task, in parts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.testbed.kubectl import Kubectl
from fleet import until

CRAWLER = "crawler"
_AGE = "import time; s = float(open('/proc/1/stat').read().rpartition(')')[2].split()[19]) / 100"
_STARTED_AT = f"{_AGE}; print(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + s)"
"""When the container's first process was started, in seconds since the epoch: proc(5), field 22."""


@dataclass(frozen=True)
class Start:
    """Seconds each. The parts of the crawler add up to `total_s`; Chrome gets ready beside them."""

    scheduling_s: float
    containers_s: float
    imports_s: float
    database_s: float
    first_task_s: float
    chrome_s: float

    @property
    def total_s(self) -> float:
        return self.scheduling_s + self.containers_s + self.imports_s + self.database_s + self.first_task_s

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name.removesuffix('_s').replace('_', ' ')} {value:.2f}" for name, value in vars(self).items()
        )
        return f"{self.total_s:.2f} s from creation to the first task: {parts}"


def of_first_pod(kubectl: Kubectl, create: Callable[[], None]) -> Start:
    """Create a fleet of one worker, whose pod is labelled `app: fleet`, and wait for its first crawl."""
    created_at = time.time()
    create()
    pod = until(lambda: kubectl("get", "pods", "--selector=app=fleet", "-o", "name"), "a pod").strip()
    kubectl.wait(pod, until="condition=Ready")
    name = pod.removeprefix("pod/")
    until(lambda: '"crawled"' in kubectl("logs", name, f"--container={CRAWLER}"), "a crawl")
    return _measured(kubectl, name, created_at)


def _measured(kubectl: Kubectl, pod: str, created_at: float) -> Start:
    """Of a pod that crawls. `created_at` is the clock of this machine when its Job was created."""
    scheduled_at = _scheduled_at(kubectl, pod)
    process_at = float(kubectl("exec", pod, f"--container={CRAWLER}", "--", "python3", "-c", _STARTED_AT))
    said = _events(kubectl, pod, CRAWLER)
    starts_at, registered_at = said["worker starts"], said["worker registered"]
    return Start(
        scheduling_s=scheduled_at - created_at,
        containers_s=process_at - scheduled_at,
        imports_s=starts_at - process_at,
        database_s=registered_at - starts_at,
        first_task_s=said["crawled"] - registered_at,
        chrome_s=_events(kubectl, pod, "chrome")["chrome ready"] - scheduled_at,
    )


def _scheduled_at(kubectl: Kubectl, pod: str) -> float:
    (event,) = kubectl.list("events.events.k8s.io", f"--field-selector=reason=Scheduled,regarding.name={pod}")
    return datetime.fromisoformat(event["eventTime"]).timestamp()


def _events(kubectl: Kubectl, pod: str, container: str) -> dict[str, float]:
    """When each event was logged first; a crawl when it began."""
    found: dict[str, float] = {}
    for line in kubectl("logs", pod, f"--container={container}").splitlines():
        event: dict[str, Any] = json.loads(line)
        at = datetime.fromisoformat(event["at"]).timestamp() - event.get("ms", 0) / 1000
        found[event["event"]] = min(at, found.get(event["event"], at))
    return found
