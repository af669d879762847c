"""What is in the images and what is not; their commands run as on a node: as nobody special, on a read-only file system."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from cluster.ability import OTHER, told_in_one_sentence
from cluster.testbed import machine
from cluster.testbed.images import CHROME, CRAWLER, OPERATOR, Built, Images

LIMIT_MB = {CRAWLER: 250, OPERATOR: 350, CHROME: 600}
PYTHONS = ("usr/lib/python3.11", "opt/crawlfleet/lib")
CRAWLS = {"selenium", "websockets"}
OPERATES = {"kopf", "kubernetes"}
UNCHECKED = 1
"""The flags of bytecode that Python takes without a look at the source (PEP 552)."""

_CONTAINER = """
mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc" && mount --bind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/tmp" && mount -t tmpfs tmpfs "$ROOT/dev/shm"
exec chroot --userspec="$AS" --groups= "$ROOT" env --ignore-environment "$@"
"""


class Image:
    """An image, unpacked to look at and to run."""

    def __init__(self, name: str, root: Path, config: Mapping[str, Any]) -> None:
        self.name = name
        self.root = root
        self._config = config

    def find(self, *patterns: str) -> list[str]:
        return sorted(
            str(path.relative_to(self.root)) for pattern in patterns for path in self.root.glob(pattern)
        )

    def command(self, *words: str, **environment: str) -> list[str]:
        """Its entrypoint with these words, or else its own, as PID 1."""
        return self._contained([*self._config["Entrypoint"], *(words or self._config["Cmd"])], environment)

    def do(self, *program: str) -> str:
        """What that program says in it."""
        done = subprocess.run(self._contained(program, {}), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _contained(self, program: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """As the image's user, with nothing to write to but /tmp."""
        set_up = [f"ROOT={self.root}", f"AS={self._config['User']}"]
        own = [*self._config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return ["env", *set_up, *unshare, "sh", "-euc", _CONTAINER, "sh", *own, *program]


@pytest.fixture(scope="session")
def built(claim: None) -> dict[str, Built]:
    """All of them, by name."""
    if os.environ.get(OTHER):
        pytest.skip(f"{OTHER} is set: images are of the other cluster")
    with told_in_one_sentence():
        machine.require()
        return {image.name: image for image in Images(print).build()}


@pytest.fixture(scope="session")
def images(built: dict[str, Built]) -> Images:
    return Images(print)


@contextmanager
def unpacked(images: Images, name: str) -> Iterator[Image]:
    with images.unpacked(name) as root:
        yield Image(name, root, images.config(name))


@pytest.fixture(scope="module", params=LIMIT_MB)
def image(request: pytest.FixtureRequest, images: Images) -> Iterator[Image]:
    with unpacked(images, request.param) as made:
        yield made


def test_it_is_small(image: Image, built: dict[str, Built], capsys: pytest.CaptureFixture[str]) -> None:
    size_mb = built[image.name].size / 1e6

    with capsys.disabled():
        print(f"\n{image.name}: {size_mb:.0f} MB")
    assert size_mb <= LIMIT_MB[image.name]


def test_nothing_is_left_of_its_build(image: Image) -> None:
    tools = image.find(
        "usr/bin/*gcc*", "usr/bin/cc", "usr/bin/make", "**/bin/pip*", "**/site-packages/pip", "pip"
    )
    downloads = image.find(
        "var/lib/apt/lists/*_*", "var/cache/apt/archives/*.deb", "root/.cache", "build", "wheels"
    )
    managers = image.find("opt/crawlfleet/lib/**/selenium-manager*")

    settings = [path for path in image.find("etc/pip.conf") if (image.root / path).read_text()]

    assert (tools, downloads, managers, settings) == ([], [], [], [])


def test_all_python_is_compiled_whatever_becomes_of_file_times(image: Image) -> None:
    sources = [source for folder in PYTHONS for source in (image.root / folder).rglob("*.py")]
    slow = [source for source in sources if not _is_compiled(source)]

    assert len(sources) > 1000
    assert slow == []


def _is_compiled(source: Path) -> bool:
    with suppress(FileNotFoundError):
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        return int.from_bytes(compiled.read_bytes()[4:8], "little") == UNCHECKED
    return False


def test_it_has_a_browser_if_it_is_the_browsers(image: Image) -> None:
    browsers = image.find("usr/bin/chrom*", "usr/lib/chromium/chrom*")

    assert bool(browsers) == (image.name == CHROME)


def test_it_has_the_dependencies_of_its_part_alone(image: Image) -> None:
    packages = {path.name for path in (image.root / "opt/crawlfleet/lib/python3.11/site-packages").iterdir()}
    mine, others = (OPERATES, CRAWLS) if image.name == OPERATOR else (CRAWLS, OPERATES)

    assert mine <= packages
    assert not others & packages


def test_its_command_runs_as_nobody_special_on_a_read_only_file_system(image: Image) -> None:
    assert re.fullmatch(r"crawlfleet \S+\n", image.do("crawlfleet", "--version"))
    assert re.fullmatch(r"k[0-9a-f]{8}:\S{44}\n", image.do("crawlfleet", "keys", "new"))


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        (
            CRAWLER,
            "crawlfleet.worker, crawlfleet.browser.pool, crawlfleet.sources.ably, crawlfleet.sources.cafe24",
        ),
        (OPERATOR, "crawlfleet_operator.main, crawlfleet.sources.ably, crawlfleet.sources.cafe24"),
    ],
    indirect=["image"],
)
def test_what_it_works_with_is_whole(image: Image, modules: str) -> None:
    image.do("python", "-c", f"import {modules}")


@pytest.mark.parametrize("image", [OPERATOR], indirect=True)
def test_the_operators_image_has_the_commands_that_prepare_a_cluster(image: Image) -> None:
    assert "kind: CustomResourceDefinition" in image.do("crawlfleet", "crds")
    missing = subprocess.run(image.command("migrate"), capture_output=True, text=True, timeout=60)
    assert (missing.returncode, "migrate needs --database-url" in missing.stderr) == (2, True)


@pytest.mark.parametrize("image", [CRAWLER], indirect=True)
def test_a_worker_says_what_it_lacks(image: Image) -> None:
    done = subprocess.run(image.command(), capture_output=True, text=True, timeout=60)

    assert done.returncode == 78
    assert done.stderr.startswith("crawlfleet: CRAWLFLEET_DATABASE_URL is not set")


class Chrome:
    """`crawlfleet chrome` as the image runs it, without a cluster."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.log: list[str] = []
        self._port = self._await(r"control port served port=(\d+)")[1]

    def status(self) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{self._port}/status", timeout=10) as reply:
            told: dict[str, Any] = json.load(reply)
        return told

    def await_ready(self) -> None:
        self._await("chrome ready")

    def end(self) -> tuple[int, float]:
        """SIGTERM to PID 1; the exit code, and the seconds it took."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        began_s = time.monotonic()
        os.kill(int(children), signal.SIGTERM)
        return self._process.wait(30), time.monotonic() - began_s

    def _await(self, pattern: str) -> re.Match[str]:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail("it ended:\n" + "".join(self.log))


@pytest.fixture
def chrome(images: Images) -> Iterator[Chrome]:
    with unpacked(images, CHROME) as image:
        command = image.command(CRAWLFLEET_CHROME_PORT="0")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            yield Chrome(process)
        finally:
            process.kill()
            process.communicate()


def test_chrome_becomes_ready_and_ends_when_told(chrome: Chrome) -> None:
    chrome.await_ready()
    status = chrome.status()
    code, seconds = chrome.end()

    print(f"ready in {status['launch_s']:.1f} s, {status['memory_mb']:.0f} MB, ended in {seconds:.1f} s")
    assert (code, status["ready"]) == (0, True)
    assert seconds < 10


def test_the_fonts_were_looked_through_at_the_build(images: Images) -> None:
    """Else each Chrome would, at each of its starts."""
    with unpacked(images, CHROME) as image:
        told = image.do("fc-cache", "--verbose", "--system-only")
        korean = image.do("fc-list", ":lang=ko")

    assert "existing cache is valid: 12 fonts" in told
    assert "new cache contents" not in told
    assert "NanumGothic" in korean
