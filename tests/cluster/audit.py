"""What the API server noted of a service account's calls (manifests/audit.yaml); only a testbed of our own keeps such notes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cluster.testbed import place
from cluster.testbed.kubectl import Document


@dataclass(frozen=True)
class Call:
    """One request, as a Role would name it: `resource` has its subresource, such as `jobs/status`."""

    verb: str
    group: str
    resource: str
    status: int
    at_s: float


def calls(namespace: str, account: str) -> list[Call]:
    """Every call of a service account so far, in the order of their arrival; a watch is one from its beginning."""
    user = f"system:serviceaccount:{namespace}:{account}"
    latest = {note["auditID"]: note for note in _notes() if note["user"]["username"] == user}
    return sorted(map(_call, latest.values()), key=lambda call: call.at_s)


def _notes() -> Iterator[Document]:
    """The last line may be half written."""
    with place.AUDIT_LOG.open() as log:
        for line in log:
            if line.endswith("\n"):
                yield json.loads(line)


def _call(note: Document) -> Call:
    """Paths that are no resource, such as /version, have none of their names."""
    about = note.get("objectRef", {})
    names = [about.get("resource") or note["requestURI"], about.get("subresource")]
    return Call(
        verb=note["verb"],
        group=about.get("apiGroup", ""),
        resource="/".join(filter(None, names)),
        status=note.get("responseStatus", {}).get("code", 0),
        at_s=datetime.fromisoformat(note["requestReceivedTimestamp"]).timestamp(),
    )
