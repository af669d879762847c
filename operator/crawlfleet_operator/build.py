"""Builds what a CrawlBatch needs in the cluster, as plain documents: its Job and its PodDisruptionBudget. Pure.

Each choice in the Job stands for something that a Job does otherwise (docs/adr/0007): read it before you simplify one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from crawlfleet.errors import DRAINED, STOPPED_ITSELF, BadConfiguration, BadInput
from crawlfleet.manifests import API_VERSION, GROUP, CrawlBatch

Document = dict[str, Any]

MANAGER = "crawlfleet-operator"
"""The operator: on what it makes, of the fields that it applies, and in its Events."""
BATCH_UID = f"{GROUP}/batch-uid"
BATCH, ROUND, REVISION = f"{GROUP}/batch", f"{GROUP}/round", f"{GROUP}/revision"
DIGEST = f"{GROUP}/template-digest"
OURS = {"app.kubernetes.io/name": "crawlfleet", "app.kubernetes.io/managed-by": MANAGER}
MANAGED = f"app.kubernetes.io/managed-by={MANAGER},{BATCH},{BATCH_UID},{ROUND},{REVISION}"
"""Finds our Jobs, and no other that only says so: each has all labels that we read."""
CRAWLER, CHROME = "crawler", "chrome"
SECRETS = "/etc/crawlfleet"
GRACE_S = 140
CLOSING_S = 20
"""Of the grace period a worker keeps so much to put down what it could not finish."""
INDEX = "metadata.labels['batch.kubernetes.io/job-completion-index']"
WORKER_FAILURES = 6
"""How often a worker's pod may fail before its index is given up; drains and disruptions do not count."""
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class Images:
    """What the pods of every batch run, and where they find the database and the keys."""

    crawler: str
    chrome: str
    pull_policy: str
    secret: str


def job(
    batch: CrawlBatch, uid: str, template: Document, *, name: str, round_: int, revision: int, size: int
) -> Document:
    """The Job of one revision: `size` workers, of which the first that has read the batch as closed ends it."""
    labels = {**_labels(batch, uid), ROUND: str(round_), REVISION: str(revision)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {DIGEST: digest(template)},
            "ownerReferences": [_owner(batch, uid)],
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": size,
            "parallelism": size,
            "suspend": False,
            "backoffLimitPerIndex": WORKER_FAILURES,
            "successPolicy": {"rules": [{"succeededCount": 1}]},
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    _on_exit("Ignore", STOPPED_ITSELF, DRAINED),
                    _on_exit("FailJob", BadConfiguration.exit_code),
                ]
            },
            "template": with_concurrency(template, batch.spec.max_concurrent),
        },
    }


def job_name(batch: str, round_: int, revision: int) -> str:
    """Two operators that see the same give it the same name, so that there is one."""
    return f"{batch}-{round_}-{revision}"


def pod_template(batch: CrawlBatch, uid: str, images: Images, *, needs_chrome: bool) -> Document:
    """The pods of a batch, its own `template` merged in. `maxConcurrent` is not in it: it may change under a running pod."""
    own = batch.spec.template.model_dump(mode="json", by_alias=True, exclude_none=True)
    grace_s = _grace_s(own)
    ours: Document = {
        "metadata": {"labels": _labels(batch, uid)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [_chrome(images)] if needs_chrome else [],
            "containers": [_crawler(batch, uid, images, drain_s=max(1, grace_s - CLOSING_S))],
            "volumes": _volumes(images, needs_chrome=needs_chrome),
            "tolerations": [_tolerate("not-ready"), _tolerate("unreachable")],
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {BATCH_UID: uid}},
                }
            ],
        },
    }
    merged: Document = _merged(ours, own)
    merged["spec"]["restartPolicy"] = "Never"
    if not needs_chrome:
        merged["spec"]["initContainers"] = [
            c for c in merged["spec"]["initContainers"] if c["name"] != CHROME
        ]
    merged["metadata"]["labels"] |= _labels(batch, uid)
    return merged


def with_concurrency(template: Document, max_concurrent: int) -> Document:
    """The template with the MAX_CONCURRENT that its workers start with."""
    copy: Document = json.loads(json.dumps(template))
    (crawler,) = (c for c in copy["spec"]["containers"] if c["name"] == CRAWLER)
    others = [one for one in crawler["env"] if one["name"] != "MAX_CONCURRENT"]
    crawler["env"] = [*others, {"name": "MAX_CONCURRENT", "value": str(max_concurrent)}]
    return copy


def digest(template: Document) -> str:
    """What tells one revision's pods from another's."""
    return sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def pod(batch: CrawlBatch, template: Document) -> Document:
    """A pod of that template, for the API server to say whether it would take one."""
    filled = with_concurrency(template, batch.spec.max_concurrent)
    metadata = {**filled["metadata"], "generateName": f"{batch.metadata.name}-"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": filled["spec"]}


def disruption_budget(batch: CrawlBatch, uid: str, size: int) -> Document:
    """One pod at a time may be evicted. Of the kinds of budgets only a number works for pods of a Job."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": batch.metadata.name,
            "labels": _labels(batch, uid),
            "ownerReferences": [_owner(batch, uid)],
        },
        "spec": {
            "minAvailable": size - 1,
            "selector": {"matchLabels": {BATCH_UID: uid}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def selector(uid: str) -> str:
    """Finds the pods of a batch."""
    return f"{BATCH_UID}={uid}"


def _labels(batch: CrawlBatch, uid: str) -> dict[str, str]:
    return {**OURS, "app.kubernetes.io/component": "crawler", BATCH: batch.metadata.name, BATCH_UID: uid}


def _owner(batch: CrawlBatch, uid: str) -> Document:
    return {
        "apiVersion": API_VERSION,
        "kind": "CrawlBatch",
        "name": batch.metadata.name,
        "uid": uid,
        "controller": True,
    }


def _on_exit(action: str, *codes: int) -> Document:
    """The container is always named: Chrome is often killed at the end, and its codes mean nothing."""
    return {
        "action": action,
        "onExitCodes": {"containerName": CRAWLER, "operator": "In", "values": list(codes)},
    }


def _tolerate(condition: str) -> Document:
    """A lost node's pods go after half a minute instead of five."""
    return {
        "key": f"node.kubernetes.io/{condition}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 30,
    }


def _grace_s(template: Mapping[str, Any]) -> int:
    given = template.get("spec", {}).get("terminationGracePeriodSeconds")
    return given if isinstance(given, int) else GRACE_S


def _crawler(batch: CrawlBatch, uid: str, images: Images, *, drain_s: int) -> Document:
    return {
        "name": CRAWLER,
        "image": images.crawler,
        "imagePullPolicy": images.pull_policy,
        "args": ["worker"],
        "env": [
            {"name": "WORKER_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
            {"name": "CRAWLFLEET_BATCH", "value": uid},
            {"name": "CRAWLFLEET_DATABASE_URL_FILE", "value": f"{SECRETS}/database-url"},
            {"name": "CRAWLFLEET_KEYS_FILE", "value": f"{SECRETS}/keys"},
            {"name": "CRAWLFLEET_DRAIN_SECONDS", "value": str(drain_s)},
            {"name": "CRAWLFLEET_LOG_FORMAT", "value": "json"},
        ],
        "ports": [{"name": "metrics", "containerPort": 9090}],
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "metrics"},
            "periodSeconds": 20,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": RESTRICTED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "secret", "mountPath": SECRETS, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  the container's own
        ],
    }


def _chrome(images: Images) -> Document:
    """A native sidecar: it ends after the worker, and its restarts are no failures of the pod."""
    return {
        "name": CHROME,
        "image": images.chrome,
        "imagePullPolicy": images.pull_policy,
        "args": ["chrome"],
        "restartPolicy": "Always",
        "env": [{"name": "CRAWLFLEET_LOG_FORMAT", "value": "json"}],
        "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": RESTRICTED,
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  the container's own
            {"name": "chrome-tmp", "mountPath": "/tmp"},  # noqa: S108  likewise
        ],
    }


def _volumes(images: Images, *, needs_chrome: bool) -> list[Document]:
    secret = {"secretName": images.secret, "defaultMode": 0o440}
    volumes: list[Document] = [{"name": "secret", "secret": secret}, {"name": "tmp", "emptyDir": {}}]
    if needs_chrome:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}})
        volumes.append({"name": "chrome-tmp", "emptyDir": {}})
    return volumes


def _merged(ours: Any, own: Any, path: str = "template") -> Any:
    """As a strategic merge: maps by key, lists of named things by name (mounts by path), everything else is replaced.

    Raises BadInput where the one is a map or such a list and the other is not.
    """
    if isinstance(ours, dict):
        if not isinstance(own, Mapping):
            raise BadInput(f"{path}: expected a mapping")
        return {**ours, **{key: _merged(ours.get(key), value, f"{path}.{key}") for key, value in own.items()}}
    key = "mountPath" if path.endswith(".volumeMounts") else "name"
    if _is_named(ours, key):
        if not _is_named(own, key):
            raise BadInput(f"{path}: expected a list of mappings, each with a {key}")
        mine = {one[key]: one for one in ours}
        named = {one[key]: _merged(mine.get(one[key]), one, f"{path}[{one[key]}]") for one in own}
        return list((mine | named).values())
    return own


def _is_named(value: Any, key: str) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get(key), str) for one in value
    )
