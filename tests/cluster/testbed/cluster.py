"""The whole of it: brought up, found again by a later command, used by tests, taken down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.testbed import daemons, machine, network, remains, sysctls
from cluster.testbed.binaries import VERSION, Binaries
from cluster.testbed.certificates import Authority
from cluster.testbed.control_plane import ControlPlane
from cluster.testbed.daemons import Daemon
from cluster.testbed.errors import TestbedError
from cluster.testbed.images import Images
from cluster.testbed.kubectl import Document, Kubectl
from cluster.testbed.nodes import Node
from cluster.testbed.place import KUBECONFIG, MANIFESTS, STATE, NodePlace

NODES = 2
FAKE = "crawlfleet.dev/fake"
"""The label and the taint of nodes without a machine."""
Say = Callable[[str], None]
_NOTE = STATE / "version"
_ADMINISTRATOR = ("testbed-administrator", "system:masters")
_KWOK = Daemon("kwok")


@dataclass(frozen=True)
class Cluster:
    """A running testbed. Without nodes it has an API server and controllers alone: what is fast, and enough for schemas."""

    version: str
    nodes: Sequence[Node]
    kubectl: Kubectl
    control_plane: ControlPlane

    def add_fake_nodes(self, count: int) -> None:
        """Nodes without a machine, whose pods kwok lets run. They carry FAKE, as label and taint."""
        if not _KWOK.is_alive():
            _KWOK.define(
                [
                    Binaries().kwok(),
                    f"--kubeconfig={KUBECONFIG}",
                    f"--config={MANIFESTS / 'kwok.yaml'}",
                    "--manage-all-nodes=false",
                    "--node-lease-duration-seconds=40",
                    f"--manage-nodes-with-label-selector={FAKE}=true",
                ]
            )
            _KWOK.start()
        self.kubectl.apply(*(_fake_node(number) for number in range(count)))
        self.kubectl.wait("node", f"--selector={FAKE}=true", until="condition=Ready")

    def remove_fake_nodes(self) -> None:
        self.kubectl("delete", "node", f"--selector={FAKE}=true")
        _KWOK.forget()


def up(version: str = VERSION, say: Say = print) -> Cluster:
    """The running testbed if it is one of this version, else a new one; images are built and loaded in any case.

    Raises TestbedError, and Unable if this machine cannot.
    """
    machine.require()
    was_running = is_running(version, say)
    binaries, images = Binaries(version, say), Images(say)
    cluster = Cluster(
        version,
        [Node(NodePlace(number)) for number in range(_nodes_of(version))],
        Kubectl(Binaries(VERSION, say).kubernetes() / "kubectl", KUBECONFIG),
        ControlPlane(),
    )
    built = images.build() if cluster.nodes else []
    if not was_running:
        _start(cluster, binaries, say)
    for node in cluster.nodes:
        node.load(built, images)
        node.start_kubelet()
    if cluster.nodes:
        _await_pods(cluster, say)
    return cluster


def build(say: Say = print) -> None:
    """All that `up` would have to build."""
    machine.require()
    binaries = Binaries(VERSION, say)
    for program in (binaries.kubernetes, binaries.etcd, binaries.kwok):
        program()
    Images(say).build()


def down() -> None:
    """Nothing is left of it, whatever its state."""
    remains.clear()


def is_running(version: str = VERSION, say: Say = print) -> bool:
    """Whether this one runs, and whole. Raises TestbedError if another one is there."""
    if not is_there():
        return False
    if (running := _NOTE.read_text()) != version:
        raise TestbedError(f"a test cluster with Kubernetes {running} is running: `make cluster-down` first")
    ended = [daemon.name for daemon in daemons.every() if not daemon.is_alive()]
    if ended:
        say(f"{', '.join(ended)} has ended: starting afresh")
    return not ended


def is_there() -> bool:
    """Whether somebody has started one, in whatever state it is."""
    return _NOTE.exists()


def _nodes_of(version: str) -> int:
    """Other versions are built without what a node needs."""
    return NODES if version == VERSION else 0


def _start(cluster: Cluster, binaries: Binaries, say: Say) -> None:
    programs, etcd = binaries.kubernetes(), binaries.etcd()
    remains.clear()
    say(f"starting Kubernetes {cluster.version} with {len(cluster.nodes)} nodes")
    STATE.mkdir(parents=True)
    sysctls.note()
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
    _NOTE.write_text(cluster.version)


def _set_up_network(nodes: Sequence[NodePlace]) -> None:
    """Nothing of it stays if it cannot be had."""
    try:
        network.set_up(nodes or [NodePlace(0)])
        network.require_free_ports(nodes)
    except TestbedError:
        remains.clear()
        raise


def _await_pods(cluster: Cluster, say: Say) -> None:
    """Until there are nodes for them, and names of services."""
    cluster.kubectl("apply", "--filename", str(MANIFESTS / "coredns.yaml"))
    for node in cluster.nodes:
        cluster.kubectl.wait(f"node/{node.name}", until="create")
        cluster.kubectl.wait(f"node/{node.name}", until="condition=Ready")
    cluster.kubectl.within("kube-system").wait("deployment/coredns", until="condition=Available")
    say(f"{' and '.join(node.name for node in cluster.nodes)} are ready")


def _fake_node(number: int) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"fake-{number}", "labels": {FAKE: "true"}},
        "spec": {"taints": [{"key": FAKE, "effect": "NoSchedule"}]},
        "status": {
            "allocatable": (room := {"cpu": "64", "memory": "256Gi", "pods": "110"}),
            "capacity": room,
        },
    }
