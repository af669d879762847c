"""The whole of it: brought up, found again by a later command, used by tests, taken down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.testbed import daemons, machine, network, remains
from cluster.testbed.binaries import VERSION, Binaries
from cluster.testbed.certificates import Authority
from cluster.testbed.control_plane import ControlPlane
from cluster.testbed.daemons import Daemon
from cluster.testbed.errors import TestbedError
from cluster.testbed.images import Built, Images
from cluster.testbed.kubectl import Document, Kubectl
from cluster.testbed.nodes import Node
from cluster.testbed.place import CACHE, KUBECONFIG, SOURCES, STATE, NodePlace

NODES = 2
READY_S = 60
Say = Callable[[str], None]
_NOTE = STATE / "cluster.json"
_ADMINISTRATOR = ("testbed-administrator", "system:masters")
_FAKE = "crawlfleet.dev/fake"
_KWOK = Daemon("kwok")


@dataclass(frozen=True)
class Cluster:
    """A running testbed. Without nodes it has an API server and controllers alone: what is fast, and enough for schemas."""

    version: str
    nodes: Sequence[Node]
    kubectl: Kubectl
    control_plane: ControlPlane

    def add_fake_nodes(self, count: int) -> None:
        """Nodes without a machine, whose pods kwok lets run. They are tainted `crawlfleet.dev/fake`."""
        if not _KWOK.is_alive():
            _KWOK.define(
                [
                    Binaries().kwok(),
                    f"--kubeconfig={KUBECONFIG}",
                    f"--config={SOURCES / 'manifests' / 'kwok.yaml'}",
                    "--manage-all-nodes=false",
                    "--node-lease-duration-seconds=40",
                    f"--manage-nodes-with-label-selector={_FAKE}=true",
                ]
            )
            _KWOK.start()
        self.kubectl.apply(*(_fake_node(number) for number in range(count)))
        self.kubectl(
            "wait", "node", f"--selector={_FAKE}=true", "--for=condition=Ready", f"--timeout={READY_S}s"
        )

    def remove_fake_nodes(self) -> None:
        self.kubectl("delete", "node", f"--selector={_FAKE}=true")
        _KWOK.forget()


def up(version: str = VERSION, *, nodes: int = NODES, say: Say = print) -> Cluster:
    """The running testbed if it is one of this version, else a new one; images are built and loaded in any case.

    Raises TestbedError, and Unable if this machine cannot.
    """
    machine.require()
    running = is_running(version, nodes)
    binaries, images = Binaries(version, say), Images(CACHE, say)
    binaries.kubernetes()
    built = images.build() if nodes else []
    cluster = _handle(version, nodes)
    if not running:
        _start(cluster, binaries, say)
    _load(cluster.nodes, built, images)
    if nodes:
        _await_nodes(cluster, say)
    return cluster


def build(say: Say = print) -> None:
    """All that `up` would have to build."""
    machine.require()
    binaries = Binaries(VERSION, say)
    for program in (binaries.kubernetes, binaries.etcd, binaries.kwok):
        program()
    Images(CACHE, say).build()


def down() -> None:
    """Nothing is left of it, whatever its state."""
    remains.clear()


def is_running(version: str = VERSION, nodes: int = NODES) -> bool:
    """Whether this one runs, and whole. Raises TestbedError if another one is there."""
    try:
        note = json.loads(_NOTE.read_text())
    except FileNotFoundError:
        return False
    if not all(daemon.is_alive() for daemon in daemons.every()):
        return False
    if note != _note(version, nodes):
        raise TestbedError(
            f"a testbed with Kubernetes {note['version']} and {note['nodes']} nodes is running: `make cluster-down` first"
        )
    return True


def _start(cluster: Cluster, binaries: Binaries, say: Say) -> None:
    programs, etcd = binaries.kubernetes(), binaries.etcd()
    remains.clear()
    say(f"starting Kubernetes {cluster.version} with {len(cluster.nodes)} nodes")
    STATE.mkdir(parents=True)
    _set_up_network([node.place for node in cluster.nodes])
    authority = Authority()
    authority.kubeconfig(*_ADMINISTRATOR, to=KUBECONFIG)
    cluster.control_plane.define(programs, etcd, authority)
    for node in cluster.nodes:
        node.define(programs, authority)
        node.start_containerd()
    cluster.control_plane.start()
    if cluster.nodes:
        cluster.control_plane.define_for_nodes(programs, authority)
        cluster.control_plane.scheduler.start()
        cluster.control_plane.proxy.start()
    _NOTE.write_text(json.dumps(_note(cluster.version, len(cluster.nodes))))


def _set_up_network(nodes: Sequence[NodePlace]) -> None:
    """Nothing of it stays if a port is not free."""
    network.set_up(nodes or [NodePlace(0)])
    try:
        machine.require_ports(nodes)
    except TestbedError:
        remains.clear()
        raise


def _handle(version: str, nodes: int) -> Cluster:
    return Cluster(
        version,
        [Node(NodePlace(number)) for number in range(nodes)],
        Kubectl(Binaries().kubernetes() / "kubectl", KUBECONFIG),
        ControlPlane(),
    )


def _load(nodes: Sequence[Node], built: Sequence[Built], images: Images) -> None:
    for node in nodes:
        node.load(built, images)
        node.start_kubelet()


def _await_nodes(cluster: Cluster, say: Say) -> None:
    cluster.kubectl("apply", "--filename", str(SOURCES / "manifests" / "coredns.yaml"))
    for node in cluster.nodes:
        cluster.kubectl.wait(f"node/{node.name}", until="create")
        cluster.kubectl.wait(f"node/{node.name}", until="condition=Ready")
    say(f"{' and '.join(node.name for node in cluster.nodes)} are ready")


def _note(version: str, nodes: int) -> dict[str, object]:
    return {"version": version, "nodes": nodes}


def _fake_node(number: int) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"fake-{number}", "labels": {_FAKE: "true"}},
        "spec": {"taints": [{"key": _FAKE, "effect": "NoSchedule"}]},
        "status": {
            "allocatable": (room := {"cpu": "64", "memory": "256Gi", "pods": "110"}),
            "capacity": room,
        },
    }
