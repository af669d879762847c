"""The host's side of the cluster's network: one interface with the nodes' addresses, and forwarding.

Pods are wired point to point (CNI's `ptp`): none shares a bridge, so all their traffic is routed by the host and kube-proxy's
rules see it. The interface is a bridge that nothing is attached to, since not every kernel has dummies. Nothing leaves
the machine: there is no masquerading to the outside.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.testbed.errors import TestbedError, Unable
from cluster.testbed.place import (
    API_ADDRESS,
    API_PORT,
    CONTROLLERS_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    INTERFACE,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    NETWORK,
    PROXY_HEALTH_PORT,
    PROXY_METRICS_PORT,
    SCHEDULER_PORT,
    NodePlace,
)

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_INTERFACE = Path("/sys/class/net") / INTERFACE
RESULTS = Path("/var/lib/cni/results")
_ONCE = (API_PORT, CONTROLLERS_PORT, SCHEDULER_PORT, PROXY_HEALTH_PORT, PROXY_METRICS_PORT)


def set_up(nodes: Sequence[NodePlace]) -> None:
    """Raises Unable if the machine has a kube-proxy of its own: ours would remove its rules."""
    if _tables():
        raise Unable(
            "this machine is a node of a Kubernetes already: set CRAWLFLEET_TEST_KUBECONFIG to use that"
        )
    _ip("link", "add", INTERFACE, "type", "bridge")
    _ip("link", "set", INTERFACE, "up")
    for node in nodes:
        _ip("addr", "add", f"{node.address}/32", "dev", INTERFACE)
    _FORWARD.write_text("1")


def remove() -> None:
    """Whatever there is of it. Pods' own interfaces go with their namespaces."""
    if _INTERFACE.exists():
        for table in _tables():
            subprocess.run(["nft", "delete", *table.split()], capture_output=True, check=True)
        _ip("link", "delete", INTERFACE)
    for result in RESULTS.glob(f"{NETWORK}-*"):
        result.unlink(missing_ok=True)


def left() -> list[str]:
    """What there is of it, in words."""
    interfaces = [f"interface {INTERFACE}"] if _INTERFACE.exists() else []
    return [*interfaces, *(_tables() if interfaces else []), *map(str, RESULTS.glob(f"{NETWORK}-*"))]


def _tables() -> list[str]:
    """The rules of kube-proxy, ours while our interface is there: `table FAMILY NAME`."""
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return [table for table in tables.splitlines() if table.endswith(" kube-proxy")]


def require_free_ports(nodes: Sequence[NodePlace]) -> None:
    """All that a testbed listens on; its addresses are there already. Raises TestbedError that names the first taken one."""
    of_loopback = [("127.0.0.1", port) for port in (ETCD_PORT, ETCD_PEER_PORT)]
    of_first = [(API_ADDRESS, port) for port in _ONCE]
    of_each = [(node.address, port) for node in nodes for port in (KUBELET_PORT, KUBELET_HEALTH_PORT)]
    for address, port in of_loopback + of_first + of_each:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as exc:
                raise TestbedError(
                    f"port {port} of {address} cannot be used ({exc.strerror}): end what uses it"
                    f" (`ss -ltnp sport = :{port}` tells), then try again"
                ) from exc


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise TestbedError(
            f"`ip {' '.join(words)}` failed: {done.stderr.strip()}; `make cluster-down` clears what is left"
        )
