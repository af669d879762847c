"""A run that fails in many ways, with secrets planted in it; then everything a person can read is searched for them."""

from __future__ import annotations

import base64
import io
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from string import ascii_letters
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import plugin
import pytest
from fleet import Fleet, until
from http_proxy import HttpProxy
from scripted_shop import Reply, Request, ScriptedShop, html_reply, json_reply

from crawlfleet.cli import main
from crawlfleet.local.postgres import find_binaries

CARELESS = """
# An installed adapter that puts its secrets into its exceptions.
import requests
from crawlfleet.errors import Bug

class Adapter:
    official_url = None
    def __init__(self, options): pass
    def check_credentials(self, credentials): pass
    def crawl(self, crawl):
        secret = crawl.credentials["refresh_token"]
        if crawl.user_id == 10:
            raise RuntimeError(f"could not log in with {secret}")
        if crawl.user_id == 11:
            raise requests.ConnectionError(f"http://user:{secret}@example.com/")
        raise Bug("Careless", f"POST {secret} failed", snapshot=f"<input value='{secret}'>")
        yield
"""


@dataclass
class Planted:
    """Secrets that stand nowhere else, and the accounts that hold them. They could be names of JSON fields."""

    secrets: set[str] = field(default_factory=set)
    _random: Random = field(default_factory=lambda: Random(7))

    def new(self, what: str) -> str:
        secret = f"planted-{what}-" + "".join(self._random.choices(ascii_letters, k=20))
        self.secrets.add(secret)
        return secret

    def mall(self, user_id: int, *, living: bool) -> dict[str, Any]:
        """Credentials of a mall; `living`: with an access token that need not be refreshed."""
        credentials = {
            "mall_id": f"demo{user_id}",
            "client_id": "app",
            "client_secret": self.new("client-secret"),
            "refresh_token": self.new("refresh-token"),
        }
        if living:
            credentials |= {"access_token": self.new("access-token"), "expires_at": "2099-01-01T00:00:00"}
        return credentials

    def found_in(self, text: bytes) -> set[str]:
        """The secrets in this text: in clear, quoted, in base64 of any alignment, in hexadecimal."""
        return {secret for secret in self.secrets if any(form in text for form in _forms(secret))}


def _forms(secret: str) -> Iterator[bytes]:
    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield secret.encode().hex().encode()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret.encode()).decode()
        yield encoded[4:-4].encode()


def echo(planted: Planted) -> ScriptedShop:
    """A shop that says all it was told: in errors, in pages, in the names of JSON fields; and hands out new secrets."""

    def answer(request: Request) -> Reply:
        told = request.headers.get("Authorization", "") + " " + request.form.get("refresh_token", "")
        mall = request.path.split("/")[1]
        match mall:
            case "demo1":
                return json_reply({"error": {"code": 400, "message": told, told: told}}, 400)
            case "demo2":
                return Reply(
                    404, f"<html><p {told}>{told}</p></html>".encode(), {"Content-Type": "text/html"}
                )
            case "demo3":
                return json_reply({"error": "invalid_grant", "error_description": told}, 401)
            case "demo4":
                return html_reply(302, {"Location": f"http://127.0.0.1/?token={quote(told)}"})
            case "demo5":
                return json_reply({told.split()[-1]: told, "orders": [{told.split()[-1]: 1}]})
            case "demo6" if request.path.endswith("token"):
                fresh = {name: planted.new(name) for name in ("access_token", "refresh_token")}
                return json_reply(fresh | {"expires_at": "2099-01-01T00:00:00.000"})
            case "demo7" if request.path.endswith("token"):
                return json_reply({"access_token": planted.new("orphan"), "note": told})
            case _:
                return json_reply({"error": {"code": 403, "message": told}}, 403)

    return ScriptedShop(answer)


@dataclass
class Failed:
    """A run that has failed in every way, and what it planted."""

    fleet: Fleet
    planted: Planted
    metrics: bytes


@pytest.fixture
def failed(fleet: Fleet, tmp_path: Path) -> Failed:
    planted = Planted()
    planted.secrets.add(fleet.keys.path.read_text().strip().partition(":")[2])
    password = planted.new("proxy-password")
    budgets = {"retry": 0, "throttledSeconds": 0}
    cool = {"first": 1, "longest": 1}
    with HttpProxy("wrong", ("someone", "else")) as proxy, echo(planted) as shop:
        base_url = shop.url + "/{mall_id}"
        fleet.declare("echo", adapter="cafe24", baseURL=base_url, maxConcurrent=9, budgets=budgets)
        fleet.declare(
            "proxied",
            adapter="cafe24",
            baseURL=base_url,
            maxConcurrent=1,
            budgets=budgets,
            coolDownSeconds=cool,
            proxies={"wrong": proxy.url.replace("someone:else", f"{planted.new('user')}:{password}")},
        )
        careless_url = base_url.replace("127.0.0.1", "localhost")
        fleet.declare("careless", adapter="careless", baseURL=careless_url, maxConcurrent=9, budgets=budgets)
        fleet.add_accounts("echo", [(u, planted.mall(u, living=u in (1, 2, 3, 4, 5))) for u in range(1, 9)])
        fleet.add_accounts("proxied", [(9, planted.mall(9, living=False))])
        fleet.add_accounts("careless", [(u, planted.mall(u, living=False)) for u in (10, 11, 12)])
        fleet.plan()
        worker = fleet.start(0, slots=10, **plugin.install(tmp_path / "plugin", "careless", CARELESS))
        port = worker.event("metrics served")["port"]
        until(lambda: not fleet.scalar("select count(*) from task where state <> 'dead'"), "all to fail")
        with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            metrics = reply.read()
        assert worker.exit_code() == 0
    return Failed(fleet, planted, metrics)


def test_no_secret_gets_out_of_a_run_that_fails_in_many_ways(failed: Failed) -> None:
    """Searched: logs, metrics, a dump of the database, and what the commands print."""
    endings = failed.fleet.all_failures()
    assert {verdict for verdict, _ in endings} == {"auth", "blocked", "bug", "retry"}
    assert len(endings) >= 7
    assert failed.fleet.scalar("select count(*) from failure where snapshot is not null") >= 3
    texts = {
        "log": failed.fleet.workers[0].log.read_bytes(),
        "metrics": failed.metrics,
        "dump": dump(failed.fleet),
        "status": command(failed.fleet, "status", "batch"),
        "list": command(failed.fleet, "accounts", "list"),
    }
    for user_id in range(1, 13):
        texts[f"why {user_id}"] = command(failed.fleet, "why", str(user_id))
        texts[f"show {user_id}"] = command(failed.fleet, "accounts", "show", str(user_id))
    assert all(texts.values())
    assert {where: found for where, text in texts.items() if (found := failed.planted.found_in(text))} == {}


def test_the_search_finds_a_secret_in_every_form() -> None:
    """Otherwise the test above could not fail."""
    planted = Planted()
    secret = planted.new("token")
    basic = base64.b64encode(f"app:{secret}".encode())
    for text in (secret.encode(), b"Basic " + basic, secret.encode().hex().encode(), b'{"a": "' + basic):
        assert planted.found_in(b"before " + text + b" after") == {secret}
    assert planted.found_in(b"nothing here") == set()


def test_the_environment_and_arguments_of_a_worker_hold_no_secret_of_an_account(fleet: Fleet) -> None:
    planted = Planted()
    fleet.declare("cafe24", adapter="cafe24", baseURL="http://127.0.0.1:9/{mall_id}", maxConcurrent=1)
    fleet.add_accounts("cafe24", [(1, planted.mall(1, living=True))])
    fleet.plan()
    worker = fleet.start()
    until(lambda: fleet.failures(1), "the first attempt")
    process = Path("/proc", str(worker.pid))
    shown = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    assert b"CRAWLFLEET_BATCH" in shown
    assert planted.found_in(shown) == set()


def dump(fleet: Fleet) -> bytes:
    """The whole database as text."""
    pg_dump = find_binaries() / "pg_dump"
    return subprocess.run([str(pg_dump), "--inserts", fleet.url], capture_output=True, check=True).stdout


def command(fleet: Fleet, *arguments: str) -> bytes:
    """What `crawlfleet ...` prints, on both streams."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = main([*arguments, "--database-url", fleet.url])
    assert code == 0, printed.getvalue()
    return printed.getvalue().encode()
