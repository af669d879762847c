"""Where the testbed keeps things, and the addresses and ports it has to itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STATE = Path("/var/lib/crawlfleet-testbed")
"""All that a running testbed has. Gone after `down`."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crawlfleet-testbed"
"""What took long to make: binaries by version, images, and the containers' storage of each node."""
HERE = Path(__file__).parent.parent
"""`tests/cluster`."""
MANIFESTS = HERE / "manifests"
REPOSITORY = HERE.parents[1]

INTERFACE = "crawlfleet0"
"""Carries the nodes' addresses; nothing ever leaves through it."""
CGROUP = "crawlfleet-testbed"
NETWORK = "crawlfleet-testbed"
"""The name under which CNI notes the pods' addresses."""
POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
DOMAIN = "cluster.local"


@dataclass(frozen=True)
class NodePlace:
    """The names, folders and addresses of node NUMBER."""

    number: int

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return f"10.245.0.{10 + self.number}"

    @property
    def pod_range(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def folder(self) -> Path:
        return STATE / self.name

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def storage(self) -> Path:
        """The images, unpacked: kept between runs."""
        return CACHE / "nodes" / self.name

    @property
    def cgroup(self) -> str:
        return f"{CGROUP}/{self.name}"


API_ADDRESS = NodePlace(0).address
API_PORT = 6443
CONTROLLERS_PORT = 10257
SCHEDULER_PORT = 10259
PROXY_HEALTH_PORT = 10256
PROXY_METRICS_PORT = 10249
"""Of the first node's address, like all that there is once."""
KUBELET_PORT = 10250
KUBELET_HEALTH_PORT = 10248
"""Of each node's address."""
ETCD_PORT, ETCD_PEER_PORT = 23790, 23791
"""On loopback, beside a host's own etcd."""
API_URL = f"https://{API_ADDRESS}:{API_PORT}"
KUBECONFIG = STATE / "kubeconfig"
CERTIFICATES = STATE / "certificates"
AUTHORITY = CERTIFICATES / "ca.crt"
LOGS = STATE / "logs"
AUDIT_LOG = LOGS / "audit.log"
"""The calls of service accounts, as manifests/audit.yaml wants them."""
POD_LOGS = STATE / "pods"
