"""Why pods do not start, in the cluster's own words. Pure: pods and events in, one reason out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from crawlfleet.errors import CLOSED, DRAINED, STOPPED_ITSELF
from crawlfleet_operator.build import CRAWLER, Document
from crawlfleet_operator.plan import Trouble

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_NO_FAILURES = (CLOSED, STOPPED_ITSELF, DRAINED)
_LONGEST = 400


def of_pods(pods: Sequence[Document]) -> Trouble | None:
    """What most of the pods that are not ready suffer from, or what one said when it failed; None if they just need time."""
    found = Counter(trouble for pod in pods if (trouble := _of_pod(pod)) is not None)
    if not found:
        words = _last_words(pods)
        return Trouble("WorkerFailed", words) if words else None
    trouble, number = found.most_common(1)[0]
    return Trouble(trouble.reason, f"{number} pod{'s' if number > 1 else ''}: {trouble.message}")


def of_events(events: Sequence[Document]) -> Trouble | None:
    """Why a Job has no pods: the newest warning about it."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    if not warnings:
        return None
    newest = max(warnings, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return Trouble(newest["reason"], _short(newest.get("message", "")))


def has_ended(pod: Document) -> bool:
    """A Job keeps those that failed, also the ones that never started."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _last_words(pods: Iterable[Document]) -> str:
    """What a worker said when it failed last; "" if none did."""
    ends = [end for pod in pods for end in _ends(pod, CRAWLER) if end["exitCode"] not in _NO_FAILURES]
    if not ends:
        return ""
    newest = max(ends, key=lambda end: end.get("finishedAt") or "")
    lines = (newest.get("message") or newest.get("reason") or "").splitlines() or [""]
    errors = [line for line in lines if '"level": "error"' in line]
    return _short(f"exit code {newest['exitCode']}: {[*lines, *errors][-1]}")


def _of_pod(pod: Document) -> Trouble | None:
    if pod["metadata"].get("deletionTimestamp"):
        return None
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Trouble("NoCapacity", _short(condition.get("message", "")))
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _IMAGE:
            return Trouble(
                "ImagePull", _short(f"{container['image']}: {waiting.get('message') or waiting['reason']}")
            )
        if waiting.get("reason") in _CONFIG:
            return Trouble("ContainerConfig", _short(waiting.get("message") or waiting["reason"]))
        if waiting.get("reason") == "CrashLoopBackOff":
            return Trouble("CrashLoop", _short(f"{container['name']}: {waiting.get('message', '')}"))
    return None


def _ends(pod: Document, container: str) -> Iterator[dict[str, Any]]:
    for one in pod.get("status", {}).get("containerStatuses", ()):
        if one["name"] == container and (ended := one.get("state", {}).get("terminated")):
            yield ended


def _short(words: str) -> str:
    """On one line; nobody reads a page in a table."""
    line = " ".join(words.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
