"""A fleet's Job, as the operator will make it: `manifests/fleet.yaml`, for so many workers."""

from __future__ import annotations

import yaml
from cluster.testbed.kubectl import Document
from cluster.testbed.place import MANIFESTS

JOB = "fleet"


def job(workers: int, name: str = JOB, /, **spec: object) -> Document:
    """Fields of `spec` replace those of the manifest; None removes one."""
    document: Document = yaml.safe_load((MANIFESTS / "fleet.yaml").read_text())
    document["metadata"]["name"] = name
    document["spec"]["template"]["metadata"]["labels"]["app"] = name
    fields = document["spec"] | {"completions": workers, "parallelism": workers} | spec
    document["spec"] = {field: value for field, value in fields.items() if value is not None}
    return document
