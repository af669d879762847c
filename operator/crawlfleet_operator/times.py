"""Times as Kubernetes writes them, to seconds since the epoch and back."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds(text: str) -> float:
    """2026-11-20T09:00:00Z → seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def written(at_s: float) -> str:
    """Seconds since the epoch → 2026-11-20T09:00:00Z."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
