"""The images that a testbed's nodes run, built by buildah (no daemon, no registry) and written as files that `ctr` imports.

The repository's Dockerfiles are built as they are. What stands in for `debian:bookworm-slim` is made by debootstrap; it alone
knows where this machine gets its packages from. An image whose files have not changed is not built again; else buildah
still has the layers that come before the change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.testbed.binaries import Binaries, require_space
from cluster.testbed.daemons import tail
from cluster.testbed.errors import TestbedError, Unable
from cluster.testbed.place import CACHE, HERE, REPOSITORY

CRAWLER = "localhost/crawlfleet/crawler:test"
CHROME = "localhost/crawlfleet/chrome:test"
OPERATOR = "localhost/crawlfleet/operator:test"
POSTGRES = "localhost/testbed/postgres:test"
COREDNS = "localhost/testbed/coredns:test"
PAUSE = "localhost/testbed/pause:test"

RELEASE = "bookworm"
_SLIM = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)
"""What debian:*-slim lacks, too."""
_KEEP_SLIM = """\
path-exclude /usr/share/doc/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
_TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
"""What this machine trusts: a mirror of packages may have a certificate of its own."""
_TRUSTED_THERE = "etc/trusted-at-build.crt"
_APT = f"""\
Acquire::Languages "none";
Acquire::https::CaInfo "/{_TRUSTED_THERE}";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke {{ "rm -f /var/cache/apt/archives/*.deb"; }};
"""
_PIP = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "cert")
"""The settings of this machine's pip that say where packages come from."""


@dataclass(frozen=True)
class Built:
    """An image: `id` is what a node knows it by, `size` its bytes, uncompressed."""

    name: str
    id: str
    size: int


@dataclass(frozen=True)
class _Recipe:
    """How an image is made; `files` is all that goes into it, apart from the base."""

    name: str
    dockerfile: Path
    context: Path
    files: Sequence[Path]
    target: str = ""

    def words(self) -> list[str]:
        target = [f"--target={self.target}"] if self.target else []
        return [*target, f"--file={self.dockerfile}", f"--tag={self.name}", str(self.context)]

    def fingerprint(self, base: str) -> str:
        digest = hashlib.sha256(f"{base} {self.target}".encode())
        for path in (self.dockerfile, *self.files):
            digest.update(f"{os.path.relpath(path, self.context)}\n".encode() + path.read_bytes())
        return digest.hexdigest()


class Images:
    """Builds and writes images. Everything is kept in the cache; whoever removes it loses nothing but time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._folder = CACHE / "images"
        self._say = say
        # What buildah notes here holds until the next boot at most.
        self._run = Path("/run", f"crawlfleet-images-{_digest(str(self._folder))}")

    def build(self) -> list[Built]:
        """All images; only what has changed is built. Raises TestbedError."""
        self._buildah("clear", "rm", "--all")  # what a killed build left
        base, binaries = self._base(), Binaries(say=self._say)
        programs = {COREDNS: binaries.coredns(), PAUSE: binaries.pause()}
        recipes = [*_recipes(), *(self._recipe_of(name, program) for name, program in programs.items())]
        there = self._names()
        return [self._build(recipe, base, is_there=recipe.name in there) for recipe in recipes]

    def archive(self, built: Built) -> Path:
        """The image as a docker-archive. Of each name the newest is kept."""
        stem = _file_name(built.name)
        file = self._folder / "archives" / f"{stem}-{built.id.removeprefix('sha256:')[:12]}.tar"
        if file.exists():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        for older in file.parent.glob(f"{stem}-*"):
            older.unlink()
        self._say(f"writing {built.name}")
        fresh = file.with_suffix(".new")
        self._buildah("write", "push", "--quiet", built.name, f"docker-archive:{fresh}:{built.name}")
        return fresh.rename(file)

    @contextmanager
    def unpacked(self, name: str) -> Iterator[Path]:
        """The files of an image, in a folder that may be changed; the image stays as it is."""
        container = self._buildah("unpack", "from", "--pull-never", name)
        try:
            yield Path(self._buildah("unpack", "mount", container))
        finally:
            self._buildah("unpack", "rm", container)

    def config(self, name: str) -> Mapping[str, Any]:
        """What the Dockerfile says of how to run it: `User`, `Env`, `Entrypoint`, `Cmd`, `Labels` …"""
        config: Mapping[str, Any] = self._inspect(name)["Docker"]["config"]
        return config

    def _base(self) -> str:
        """The name of the image that the others are built on; made afresh if this machine's sources of packages change."""
        files = {
            "etc/apt/sources.list": _apt_sources(),
            "etc/apt/apt.conf.d/slim": _APT,
            "etc/dpkg/dpkg.cfg.d/slim": _KEEP_SLIM,
            _TRUSTED_THERE: _TRUSTED.read_text(),
        }
        name = f"localhost/testbed/base:{_digest(json.dumps(files))}"
        if name not in self._names():
            require_space(self._folder)
            self._say("making the base image (a minute, once)")
            container = self._buildah("base", "from", "scratch")
            try:
                root = Path(self._buildah("base", "mount", container))
                self._debootstrap(root, files["etc/apt/sources.list"])
                _make_slim(root)
                for path, text in files.items():
                    (root / path).write_text(text)
                self._buildah("base", "commit", "--quiet", "--format=docker", container, name)
            finally:
                self._buildah("base", "rm", container)
        return name

    def _debootstrap(self, root: Path, sources: str) -> None:
        mirror = next(line.split()[1] for line in sources.splitlines() if line.split()[2] == RELEASE)
        self._command("base", ["debootstrap", "--variant=minbase", RELEASE, str(root), mirror])

    def _build(self, recipe: _Recipe, base: str, *, is_there: bool) -> Built:
        note = self._folder / "fingerprints" / _file_name(recipe.name)
        fingerprint = recipe.fingerprint(base)
        if not is_there or not note.exists() or note.read_text() != fingerprint:
            self._say(f"building {recipe.name}")
            self._buildah(
                _file_name(recipe.name),
                "build",
                "--isolation=chroot",
                "--format=docker",  # its id is then the one that nodes know it by
                "--layers",
                f"--build-arg=BASE_IMAGE={base}",
                f"--volume={self._pip_conf()}:/etc/pip.conf:ro",  # it may hold a password: not for the image
                *recipe.words(),
            )
            note.parent.mkdir(exist_ok=True)
            note.write_text(fingerprint)
        manifest = json.loads(self._inspect(recipe.name)["Manifest"])
        size = sum(layer["size"] for layer in manifest["layers"])
        return Built(recipe.name, manifest["config"]["digest"], size)

    def _pip_conf(self) -> Path:
        file = self._folder / "pip.conf"
        file.touch(mode=0o600)
        file.write_text(_pip_settings())
        return file

    def _recipe_of(self, name: str, program: Path) -> _Recipe:
        """An image of nothing but a static program."""
        dockerfile = self._folder / f"{program.name}.Dockerfile"
        dockerfile.write_text(
            f'FROM scratch\nCOPY {program.name} /{program.name}\nENTRYPOINT ["/{program.name}"]\n'
        )
        return _Recipe(name, dockerfile, program.parent, [program])

    def _names(self) -> set[str]:
        """Of the images that there are."""
        told = json.loads(self._buildah("list", "images", "--json"))
        return {name for image in told or [] for name in image["names"] or []}

    def _inspect(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._buildah("inspect", "inspect", "--type=image", name))
        return told

    def _buildah(self, what: str, *words: str) -> str:
        storage = [f"--root={self._folder / 'storage'}", f"--runroot={self._run}", "--storage-driver=overlay"]
        return self._command(what, ["buildah", *storage, *words])

    def _command(self, what: str, command: Sequence[str]) -> str:
        """What it prints; its log is kept. `what` names the log."""
        log = self._folder / "logs" / f"{what}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=output, text=True)
            output.write(done.stdout)
        if done.returncode:
            raise self._failure(what, command[0], log)
        return done.stdout.strip()

    def _failure(self, what: str, program: str, log: Path) -> TestbedError:
        said = log.read_text(errors="replace")
        if "no space left on device" in said.lower():
            free_mb = shutil.disk_usage(self._folder).free // 2**20
            return TestbedError(
                f"the disk is full ({free_mb} MB left in {self._folder}): make room and try again, or set XDG_CACHE_HOME"
            )
        return TestbedError(f"{program} failed at {what}; its log {log} ends:\n{tail(log)}")


def _make_slim(root: Path) -> None:
    for folder in _SLIM:
        for path in (root / folder).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _apt_sources() -> str:
    """Where this machine gets the release from, as lines of a sources.list."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", f"--format={form}", "Created-By: Packages"]
    try:
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise Unable("images are built from Debian's packages, and this machine has no apt-get") from exc
    lines = sorted({line for line in told.splitlines() if line.split()[2].startswith(RELEASE)})
    if not any(line.split()[2] == RELEASE for line in lines):
        raise Unable(
            f"images are built from Debian {RELEASE}, and apt knows no source of it here: try `apt-get update`"
        )
    return "\n".join(lines) + "\n"


def _pip_settings() -> str:
    """What this machine's pip is told by its files and environment of where packages are, as a pip.conf."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    settings = {}
    for line in told.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'")
    settings["cert"] = f"/{_TRUSTED_THERE}"
    return "[global]\n" + "".join(f"{name} = {settings[name]}\n" for name in _PIP if name in settings)


def _recipes() -> list[_Recipe]:
    ours, tests = _files_of_ours(), HERE / "images"
    crawler, operator = REPOSITORY / "Dockerfile.crawler", REPOSITORY / "Dockerfile.operator"
    return [
        _Recipe(CRAWLER, crawler, REPOSITORY, ours, "crawler"),
        _Recipe(CHROME, crawler, REPOSITORY, ours, "chrome"),
        _Recipe(OPERATOR, operator, REPOSITORY, ours),
        _Recipe(POSTGRES, tests / "postgres.Dockerfile", tests, [tests / "postgres-start.sh"]),
    ]


def _files_of_ours() -> list[Path]:
    """What .dockerignore lets into a build."""
    rules = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = [REPOSITORY / rule[1:] for rule in rules if rule.startswith("!")]
    found = {path for top in allowed for path in (top, *top.rglob("*")) if path.is_file()}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _file_name(name: str) -> str:
    """Of an image: `crawlfleet-crawler`."""
    return name.removeprefix("localhost/").removesuffix(":test").replace("/", "-")
