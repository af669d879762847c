"""The images that a testbed's nodes run, built by buildah (no daemon, no registry) and written as files that `ctr` imports.

The repository's Dockerfiles are built as they are. What stands in for `debian:bookworm-slim` is made by debootstrap; it alone
knows where this machine gets its packages from. buildah keeps every layer: a build that changes nothing takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.testbed.binaries import Binaries
from cluster.testbed.errors import TestbedError, Unable
from cluster.testbed.place import REPOSITORY, SOURCES

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
_LOG_LINES = 15
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Built:
    """An image: `id` is what a node knows it by, `size` is uncompressed bytes, to three digits."""

    name: str
    id: str
    size: int


@dataclass(frozen=True)
class _Recipe:
    name: str
    dockerfile: Path
    context: Path
    target: str = ""

    def words(self) -> list[str]:
        target = [f"--target={self.target}"] if self.target else []
        return [*target, f"--file={self.dockerfile}", f"--tag={self.name}", str(self.context)]


_RECIPES = (
    _Recipe(CRAWLER, REPOSITORY / "Dockerfile.crawler", REPOSITORY, "crawler"),
    _Recipe(CHROME, REPOSITORY / "Dockerfile.crawler", REPOSITORY, "chrome"),
    _Recipe(OPERATOR, REPOSITORY / "Dockerfile.operator", REPOSITORY),
    _Recipe(POSTGRES, SOURCES / "images" / "postgres.Dockerfile", SOURCES / "images"),
)


class Images:
    """Builds and writes images. Everything is kept in `cache`; whoever removes that folder loses nothing but time."""

    def __init__(self, cache: Path, say: Callable[[str], None]) -> None:
        self._folder = cache / "images"
        self._say = say
        # What buildah notes here holds until the next boot at most.
        self._run = Path("/run", f"crawlfleet-images-{_digest(str(self._folder))}")

    def build(self) -> list[Built]:
        """All images; only what has changed is built. Raises TestbedError."""
        base = self._base()
        binaries = Binaries(say=self._say)
        for recipe in _RECIPES:
            self._build(recipe, base)
        for name, program in ((COREDNS, binaries.coredns()), (PAUSE, binaries.pause())):
            self._build(self._recipe_of(name, program), base)
        found = self._found()
        return [found[name] for name in (*(recipe.name for recipe in _RECIPES), COREDNS, PAUSE)]

    def built(self, name: str) -> Built:
        """One that was built before."""
        return self._found()[name]

    def archive(self, built: Built) -> Path:
        """The image as a docker-archive. Of each name the newest is kept."""
        stem = built.name.replace("/", "-").replace(":", "-")
        file = self._folder / "archives" / f"{stem}-{_short(built.id)}.tar"
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

    def config(self, name: str) -> Mapping[str, object]:
        """What the Dockerfile says of how to run it: `User`, `Env`, `Entrypoint`, `Cmd`, `Labels` …"""
        told = json.loads(self._buildah("inspect", "inspect", "--type=image", name))
        config: Mapping[str, object] = told["Docker"]["config"]
        return config

    def _base(self) -> str:
        """The name of the image that the others are built on; made afresh if this machine's sources of packages change."""
        files = {
            "etc/apt/sources.list": _apt_sources(),
            "etc/apt/apt.conf.d/slim": _APT,
            "etc/dpkg/dpkg.cfg.d/slim": _KEEP_SLIM,
            "etc/pip.conf": _pip_settings(),
            _TRUSTED_THERE: _TRUSTED.read_text(),
        }
        name = f"localhost/testbed/base:{_digest(json.dumps(files))}"
        if name not in self._found():
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

    def _build(self, recipe: _Recipe, base: str) -> None:
        what = recipe.target or recipe.name.rpartition("/")[2].partition(":")[0]
        self._say(f"building {recipe.name}")
        self._buildah(
            what,
            "build",
            "--isolation=chroot",
            "--format=docker",  # its id is then the one that nodes know it by
            "--layers",
            f"--build-arg=BASE_IMAGE={base}",
            *recipe.words(),
        )

    def _recipe_of(self, name: str, program: Path) -> _Recipe:
        """An image of nothing but a static program."""
        dockerfile = self._folder / f"{program.name}.Dockerfile"
        dockerfile.write_text(
            f'FROM scratch\nCOPY {program.name} /{program.name}\nENTRYPOINT ["/{program.name}"]\n'
        )
        return _Recipe(name, dockerfile, program.parent)

    def _found(self) -> dict[str, Built]:
        """The images that there are, by name."""
        told = json.loads(self._buildah("list", "images", "--no-trunc", "--json"))
        return {
            name: Built(name, image["id"], _bytes(image["size"]))
            for image in told or []
            for name in image["names"] or []
        }

    def _buildah(self, what: str, *words: str) -> str:
        storage = [f"--root={self._folder / 'storage'}", f"--runroot={self._run}", "--storage-driver=overlay"]
        return self._command(what, ["buildah", *storage, *words])

    def _command(self, what: str, command: Sequence[str]) -> str:
        """What it prints; its log is kept. `what` names the log."""
        log = self._folder / "logs" / f"{what}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=output, text=True)
            except FileNotFoundError as exc:
                raise Unable(f"{command[0]} is not installed: `make cluster-deps` installs it") from exc
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
        last = "\n".join(said.splitlines()[-_LOG_LINES:])
        return TestbedError(f"{program} failed at {what}; its log {log} ends:\n{last}")


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
        raise Unable(f"images are built from Debian {RELEASE}, and apt has no source of it here")
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


def _bytes(size: str) -> int:
    """Of what buildah writes for people, such as `214 MB`."""
    number, unit = size.split()
    return round(float(number) * _UNITS[unit])
