"""One node: a containerd and a kubelet with folders, addresses and a control group of their own.

Two nodes share the host, so a test can lose one. The storage of containerd outlives the testbed: images that it
holds need not be brought again.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import yaml
from cluster.testbed import cgroups, daemons
from cluster.testbed.certificates import Authority
from cluster.testbed.daemons import Daemon
from cluster.testbed.errors import TestbedError
from cluster.testbed.images import PAUSE, Built, Images
from cluster.testbed.place import (
    AUTHORITY,
    DNS_SERVICE,
    DOMAIN,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    NETWORK,
    POD_LOGS,
    NodePlace,
)

CONTAINERD_S = 20
_NAMESPACE = "k8s.io"
"""Of containerd, where the kubelet's containers and images are."""

_CONTAINERD = """\
version = 2
root = "{storage}"
state = "{folder}/containerd"
# Without optional parts, whose folders would lie elsewhere.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  netns_mounts_under_state_dir = true
  # Without CAP_SYS_RESOURCE no process may become less likely to be killed, as a sandbox would.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{folder}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
    Root = "{folder}/runc"
"""


class Node:
    """`containerd` and `kubelet` are its two processes; what fails in a real node, a test does to them."""

    def __init__(self, place: NodePlace) -> None:
        self.place = place
        self.name = place.name
        self.containerd = Daemon(f"{place.name}-containerd")
        self.kubelet = Daemon(f"{place.name}-kubelet")

    def define(self, programs: Path, authority: Authority) -> None:
        """What both are told; none is started."""
        self.place.folder.mkdir(parents=True)
        self.place.storage.mkdir(parents=True, exist_ok=True)
        self.containerd.define(_containerd(self.place))
        self.kubelet.define(_kubelet(self.place, programs, authority))

    def start(self) -> None:
        """Both; what runs already goes on."""
        self.start_containerd()
        self.start_kubelet()

    def start_containerd(self) -> None:
        """Ready for images; without what an earlier run left in its storage."""
        if self.containerd.is_alive():
            return
        self._run_containerd()
        if self._sweep():
            self.containerd.kill()  # it has read what was swept, and would tell the kubelet of it
            self._run_containerd()

    def start_kubelet(self) -> None:
        cgroups.make(self.place.cgroup)
        self.kubelet.start()

    def load(self, built: Iterable[Built], images: Images) -> None:
        """Bring the images that it has not."""
        has = self._image_ids()
        for image in built:
            if has.get(image.name) != image.id:
                self._ctr("image", "import", str(images.archive(image)))
                has[image.name] = image.id
                self._images_note.write_text(json.dumps(has))

    def kill_container(self, container_id: str) -> None:
        """As the kernel does it when memory runs out. The id as a pod's status has it."""
        self._ctr("task", "kill", "--signal", "SIGKILL", container_id.removeprefix("containerd://"))

    def lose(self) -> None:
        """All its processes at once, as if the machine had lost its power."""
        self.kubelet.kill()
        self.containerd.kill()
        daemons.end(shims(self.place.folder))
        daemons.end(sorted(cgroups.processes(self.place.cgroup)))

    def _run_containerd(self) -> None:
        self.containerd.start()
        self.containerd.wait_until(self._answers, timeout_s=CONTAINERD_S)

    def _answers(self) -> bool:
        return self._try_ctr("version").returncode == 0

    @property
    def _images_note(self) -> Path:
        return self.place.storage / "images.json"

    def _image_ids(self) -> dict[str, str]:
        names = set(self._ctr("image", "ls", "--quiet").split())
        with suppress(OSError, ValueError):
            noted: dict[str, str] = json.loads(self._images_note.read_text())
            return {name: image_id for name, image_id in noted.items() if name in names}
        return {}

    def _sweep(self) -> bool:
        """Forget containers that died with an earlier run; whether there were some."""
        left = self._ctr("container", "ls", "--quiet").split()
        if left:
            self._ctr("container", "delete", *left)
        return bool(left)

    def _ctr(self, *words: str) -> str:
        done = self._try_ctr(*words)
        if done.returncode:
            raise TestbedError(f"`ctr {' '.join(words[:2])}` on {self.name} failed: {done.stderr.strip()}")
        return done.stdout

    def _try_ctr(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["ctr", f"--address={self.place.socket}", f"--namespace={_NAMESPACE}", *words]
        return subprocess.run(command, capture_output=True, text=True)


def shims(folder: Path) -> list[int]:
    """The processes that hold containers for a containerd below this folder; they outlive it."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _is_shim(_words(path), folder)
    ]


def _is_shim(words: list[str], folder: Path) -> bool:
    return words[0].endswith("containerd-shim-runc-v2") and any(
        Path(word).is_relative_to(folder) for word in words
    )


def _words(cmdline: Path) -> list[str]:
    with suppress(OSError):
        return cmdline.read_bytes().decode(errors="replace").split("\0")
    return [""]


def _containerd(place: NodePlace) -> list[str | Path]:
    config = place.folder / "containerd.toml"
    config.write_text(
        _CONTAINERD.format(storage=place.storage, folder=place.folder, socket=place.socket, pause=PAUSE)
    )
    network = {
        "cniVersion": "0.4.0",
        "name": NETWORK,
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(place.folder / "addresses"),
                    "ranges": [[{"subnet": place.pod_range}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    (place.folder / "cni").mkdir()
    (place.folder / "cni" / "testbed.conflist").write_text(json.dumps(network))
    return ["containerd", f"--config={config}"]


def _kubelet(place: NodePlace, programs: Path, authority: Authority) -> list[str | Path]:
    config = place.folder / "kubelet.yaml"
    config.write_text(yaml.safe_dump(_kubelet_config(place)))
    kubeconfig = authority.kubeconfig(f"system:node:{place.name}", "system:nodes")
    root = place.folder / "kubelet"
    return [
        programs / "kubelet",
        f"--config={config}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={root}",
        f"--cert-dir={root}/certificates",
        f"--hostname-override={place.name}",
        f"--node-ip={place.address}",
    ]


def _kubelet_config(place: NodePlace) -> dict[str, object]:
    no_resolver = place.folder / "resolv.conf"
    no_resolver.write_text("")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": place.address,
        "port": KUBELET_PORT,
        "healthzBindAddress": place.address,
        "healthzPort": KUBELET_HEALTH_PORT,
        "authentication": {
            "x509": {"clientCAFile": str(AUTHORITY)},
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{place.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": DOMAIN,
        "resolvConf": str(no_resolver),
        "podLogsDir": str(POD_LOGS / place.name),
        "makeIPTablesUtilChains": False,  # would stay in the host's tables
        "volumePluginDir": str(place.folder / "volume-plugins"),
        # The host's disk is not the cluster's: images stay, and nothing is evicted until it is truly full.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    }
