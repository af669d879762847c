"""The programs of a cluster, built from Go modules (`../go`) into the cache, once a version.

Kubernetes is one binary for all its components, called by links of their names: it links once. A matrix version is
built without what a node needs, which is faster.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.testbed.errors import TestbedError, Unable
from cluster.testbed.place import CACHE, HERE

VERSION = "v1.34.4"
"""The version that has nodes; `go.mod` pins it. Others have a module file of their own."""
GO = HERE / "go"
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager")
NODES = ("kube-scheduler", "kube-proxy", "kubelet", "kubectl")

_SPACE_MB = 4096
_LOG_LINES = 12


def versions() -> list[str]:
    """What can be built: the one with nodes first."""
    return [VERSION, *sorted(path.stem for path in (GO / "kubernetes").glob("v*.mod"))]


class Binaries:
    """Paths of programs; each call builds what the cache lacks, and says so."""

    def __init__(self, version: str = VERSION, say: Callable[[str], None] = print) -> None:
        if version not in (known := versions()):
            raise TestbedError(
                f"Kubernetes {version} is not pinned in {GO}/kubernetes; there are {', '.join(known)}"
            )
        self.version = version
        self._say = say

    def kubernetes(self) -> Path:
        """The folder with the links `kube-apiserver`, `kubectl` and so on."""
        return self._built(f"kubernetes-{self.version}", "kubernetes", self._build_kubernetes)

    @property
    def _module_file(self) -> str:
        return "go.mod" if self.version == VERSION else f"{self.version}.mod"

    def etcd(self) -> Path:
        """Debian's is too old for what the API server streams."""
        return self._program("etcd", "go.etcd.io/etcd/server/v3")

    def coredns(self) -> Path:
        """The cluster's DNS."""
        return self._program("coredns", ".")

    def pause(self) -> Path:
        """Holds the namespaces of a pod open."""
        return self._program("pause", ".")

    def kwok(self) -> Path:
        """Fakes nodes and their pods."""
        return self._program("kwok", "sigs.k8s.io/kwok/cmd/kwok")

    def _program(self, name: str, package: str) -> Path:
        return self._built(name, name, lambda into: _go_build(GO / name, into / name, package)) / name

    def _built(self, name: str, module: str, build: Callable[[Path], None]) -> Path:
        """Built beside its place and moved there when complete: a build that was cut short leaves nothing."""
        folder = CACHE / "bin" / f"{name}-{_fingerprint(GO / module)}"
        if not folder.exists():
            self._say(f"building {name} (minutes, once)")
            fresh = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            require_space(fresh)
            build(fresh)
            fresh.rename(folder)
        return folder

    def _build_kubernetes(self, into: Path) -> None:
        whole = self.version == VERSION
        _, minor, _ = self.version.removeprefix("v").split(".")
        stamps = {"gitVersion": self.version, "gitMajor": "1", "gitMinor": minor, "gitTreeState": "clean"}
        version = " ".join(
            f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamps.items()
        )
        options = [f"-modfile={self._module_file}", *([] if whole else ["-tags=controlplane"])]
        _go_build(GO / "kubernetes", into / "kubernetes", ".", options, version)
        for name in (*CONTROL_PLANE, *(NODES if whole else ())):
            (into / name).symlink_to("kubernetes")


def _go_build(
    module: Path, output: Path, package: str, options: Sequence[str] = (), variables: str = ""
) -> None:
    if not shutil.which("go"):
        raise Unable(
            "Go is not installed, and the cluster's programs are built with it: install Go 1.26 or newer"
        )
    command = ["go", "build", "-trimpath", f"-ldflags=-s -w {variables}", *options, f"-o={output}", package]
    done = subprocess.run(
        command, cwd=module, env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True
    )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-_LOG_LINES:])
        raise TestbedError(f"`{' '.join(command)}` in {module} failed:\n{last}")


def _fingerprint(sources: Path) -> str:
    """Of the Go files and what they are pinned to."""
    digest = hashlib.sha256()
    for path in sorted(path for path in sources.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def require_space(folder: Path) -> None:
    """Raises TestbedError if a build would not fit."""
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < _SPACE_MB:
        raise TestbedError(
            f"{folder} has {free_mb} MB left, a build needs {_SPACE_MB}: free some, or set XDG_CACHE_HOME"
        )
