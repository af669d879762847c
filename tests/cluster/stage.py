"""A fleet's surroundings as pods: PostgreSQL and the stand-in shops; and the command line, at work on that database."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from cluster.job import job
from cluster.testbed.kubectl import Document, Kubectl
from cluster.testbed.place import MANIFESTS, REPOSITORY
from fleet import accusations

from crawlfleet.child import spawn
from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.shop import AblyShop
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop

BATCH = "local-batch"
"""Of the sample."""
SAMPLE = REPOSITORY / "k8s/samples/local-batch.yaml"
DAYS = 7
USERS = range(1, 101)
IN_CLUSTER = "postgresql://crawlfleet@postgres/crawlfleet"
Items = dict[tuple[int, str, str], Any]
_FORWARDED = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


class Stage:
    """In one namespace. `database_url` leads there from this machine."""

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        self.kubectl = kubectl
        self.database_url = ""
        self._folder = folder
        self._keys = folder / "keys"

    @contextmanager
    def reached(self) -> Iterator[None]:
        """A way from this machine to the database, by way of the API server."""
        with forwarded(self.kubectl, "pod/postgres", 5432) as port:
            self.database_url = f"postgresql://crawlfleet@127.0.0.1:{port}/crawlfleet"
            yield

    def prepare(self, workers: int) -> None:
        """The sample batch is planned for so many workers, and the key ring is a Secret."""
        self.crawlfleet("migrate")
        self._make_secret("keys")
        accounts = self._accounts(USERS)
        sample = self._folder / "sample.yaml"
        sample.write_text(yaml.safe_dump_all(_sample(workers)))
        self.crawlfleet("plan", "-f", str(sample), "--accounts", str(accounts))

    def prepare_for_operator(self, users: int) -> None:
        """Accounts and their keys are there; the operator declares and plans."""
        self.crawlfleet("migrate")
        self._make_secret("crawlfleet", f"--from-literal=database-url={IN_CLUSTER}")
        self.crawlfleet("accounts", "import", str(self._accounts(range(1, users + 1))))

    def _make_secret(self, name: str, *more: str) -> None:
        self._keys.write_text(self.crawlfleet("keys", "new"))
        self.kubectl("create", "secret", "generic", name, f"--from-file=keys={self._keys}", *more)

    def _accounts(self, users: Container[int]) -> Path:
        """The shops' account lines of these users."""
        said = [line for line in self.kubectl("logs", "shops").splitlines() if line.startswith("{")]
        file = self._folder / "accounts.jsonl"
        file.write_text("\n".join(line for line in said if json.loads(line)["user_id"] in users) + "\n")
        return file

    def start_fleet(self, workers: int) -> None:
        self.kubectl.apply(job(workers))

    def crawlfleet(self, *words: str) -> str:
        """What the command prints."""
        options = ["--database-url", self.database_url, "--keys-file", str(self._keys)]
        command = [sys.executable, "-m", "crawlfleet", *words, *(() if words[0] == "keys" else options)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def items(self, batch: str = BATCH) -> Items:
        lines = [json.loads(line) for line in self.crawlfleet("results", batch).splitlines()]
        items = {(line["user_id"], line["kind"], line["external_id"]): line["body"] for line in lines}
        assert len(items) == len(lines)
        return items

    def violations(self) -> dict[str, int]:
        """What the shops counted of impoliteness, as far as it is not zero."""
        found: dict[str, int] = {}
        for port in (8024, 8025):
            with (
                forwarded(self.kubectl, "pod/shops", port) as local,
                urlopen(f"http://127.0.0.1:{local}/_counters") as answer,
            ):
                accused = accusations(json.load(answer))
            found |= {f"{port} {name}": count for name, count in accused.items()}
        return found


def _sample(workers: int) -> Iterator[Document]:
    """The sample for so many workers, at the shops of the namespace."""
    for document in yaml.safe_load_all(SAMPLE.read_text()):
        spec = document["spec"]
        if document["kind"] == "CrawlSource":
            spec["baseURL"] = spec["baseURL"].replace("127.0.0.1", "shops")
        else:
            spec["workers"] = workers
        yield document


def truth(users: Iterable[int] = USERS) -> Items:
    """What a batch of these users, of the sample if not said, has to bring."""
    cafe24, ably = Cafe24Shop(Cafe24Config()), AblyShop(AblyConfig())
    return {
        (user, *key): body
        for user in users
        for orders in (
            cafe24.expected_items(f"demo{user}", DAYS),
            ably.expected_items(f"demo{user}", DAYS, "dom"),
        )
        for key, body in orders.items()
    }


@contextmanager
def stage(kubectl: Kubectl, folder: Path) -> Iterator[Stage]:
    """Ready to be crawled, for as long as it is entered."""
    kubectl("apply", "--filename", str(MANIFESTS / "stage.yaml"))
    for pod in ("postgres", "shops"):
        kubectl.await_ready(pod)
    staged = Stage(kubectl, folder)
    with staged.reached():
        yield staged


@contextmanager
def forwarded(kubectl: Kubectl, what: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to the pod's."""
    command = kubectl.command("port-forward", "--address=127.0.0.1", what, f":{port}")
    forward = spawn(command, death_signal=signal.SIGKILL, stdout=subprocess.PIPE)
    try:
        assert forward.stdout is not None
        said = forward.stdout.readline().decode()
        found = _FORWARDED.search(said)
        assert found, said
        yield int(found.group(1))
    finally:
        forward.kill()
        forward.communicate()
