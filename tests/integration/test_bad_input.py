"""What goes wrong through no fault of ours: one clear error (what, where, what to do), its exit code, nothing lost."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from builders import scalar, task_states
from fleet import until
from http_proxy import HttpProxy
from terminal import (
    Seat,
    account_line,
    accounts_file,
    batch,
    free_port,
    keys_of,
    manifest,
    noop_run,
    seat_in,
    source,
)

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import client_secret, refresh_token
from crawlfleet.demo.server import ShopServer
from crawlfleet.store import batches
from crawlfleet.store.connection import Connection, connect

SHOP = Cafe24Config(orders_per_mall=3, products_per_mall=2)
WORKER_FAILS = 78


@pytest.fixture
def seat(open_dir: Path, database_url: str) -> Iterator[Seat]:
    with seat_in(open_dir, database_url) as made:
        yield made


@pytest.fixture
def bare_seat(open_dir: Path) -> Iterator[Seat]:
    """A seat without a database of its own."""
    with seat_in(open_dir) as made:
        yield made


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one message on stderr; a worker's comes after the event that it starts."""
    said = re.sub(r"^\S+ info worker starts .*\n", "", done.stderr)
    assert said.startswith(("crawlfleet: ", "usage: ")), done.stderr
    return said


def seller(user_id: int, **credentials: Any) -> dict[str, Any]:
    mall = f"demo{user_id}"
    known = {
        "mall_id": mall,
        "client_id": "crawlfleet-demo",
        "client_secret": client_secret(SHOP),
        "refresh_token": refresh_token(SHOP, mall),
    }
    return account_line(user_id, source="cafe24", **known | credentials)


class TestDatabase:
    def test_that_nobody_serves(self, bare_seat: Seat) -> None:
        bare_seat.environment["CRAWLFLEET_DATABASE_URL"] = (
            f"postgresql://user:secret-word@127.0.0.1:{free_port()}/x"
        )

        done = bare_seat.do(*noop_run(bare_seat, users=1))

        assert done.returncode == 1
        assert "cannot reach the database: " in complaint(done)
        assert "Connection refused" in done.stderr
        assert "?." not in done.stderr
        assert "Check that PostgreSQL runs and that CRAWLFLEET_DATABASE_URL is right" in done.stderr
        assert "secret-word" not in done.stderr

    def test_whose_url_cannot_be_read(self, bare_seat: Seat) -> None:
        done = bare_seat.do("status", "--database-url", "postgres secret-word@host")

        assert done.returncode == 2
        assert "the database URL cannot be read; expected postgresql://" in complaint(done)
        assert "secret-word" not in done.stderr

    @pytest.mark.parametrize("how", ["option", "variable"])
    def test_whose_url_is_empty(self, bare_seat: Seat, how: str) -> None:
        """Most likely an unset shell variable: not the embedded database by surprise."""
        words = ["status", "--database-url", ""] if how == "option" else ["status"]
        bare_seat.environment |= {} if how == "option" else {"CRAWLFLEET_DATABASE_URL": " "}

        done = bare_seat.do(*words)

        assert done.returncode == 2
        assert "--database-url or CRAWLFLEET_DATABASE_URL is empty" in complaint(done)
        assert not bare_seat.state_dir.exists()

    @pytest.mark.parametrize(
        "words",
        [
            ("status",),
            ("why", "1"),
            ("results", "x"),
            ("accounts", "list"),
            ("accounts", "purge", "1"),
            ("cancel", "x"),
            ("keys", "rotate"),
        ],
        ids=" ".join,
    )
    def test_that_a_command_would_have_to_make_to_look_at_it(
        self, bare_seat: Seat, words: tuple[str, ...]
    ) -> None:
        done = bare_seat.do(*words)

        assert done.returncode == 2
        assert f"there is no database in {bare_seat.state_dir}; `crawlfleet run` and" in complaint(done)
        assert not bare_seat.state_dir.exists()

    def test_without_our_schema(self, seat: Seat, database_url: str) -> None:
        other = (
            database_url.replace("///", "///postgres?").partition("?")[0]
            + "?"
            + database_url.partition("?")[2]
        )

        done = seat.do("status", "--database-url", other)

        assert done.returncode == 1
        assert "the database has no crawlfleet schema; run `crawlfleet migrate`" in complaint(done)

    def test_that_goes_away_during_a_command(self, seat: Seat, database_url: str) -> None:
        """Whatever the server says, it is one message."""
        seat.ok(*noop_run(seat, users=4, items=300, item_bytes=20_000))
        export = subprocess.Popen(
            seat.arguments("results", "nightly"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=seat.environment,
        )
        assert export.stdout
        assert export.stdout.readline()
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'crawlfleet command' and datname = current_database()"
            )

        _, said = export.communicate(timeout=60)

        assert export.returncode == 1
        assert said.decode().startswith("crawlfleet: cannot reach the database: ")

    def test_of_a_worker_that_nobody_serves(self, bare_seat: Seat) -> None:
        keys = bare_seat.folder / "keys"
        keys.write_text(bare_seat.ok("keys", "new"))
        bare_seat.environment |= {
            "CRAWLFLEET_DATABASE_URL": f"postgresql://user:secret-word@127.0.0.1:{free_port()}/x",
            "CRAWLFLEET_KEYS_FILE": str(keys),
            "CRAWLFLEET_BATCH": "nightly",
            "WORKER_ID": "0",
        }

        done = bare_seat.do("worker")

        assert done.returncode == 1
        assert "cannot reach the database: " in complaint(done)


class TestKeys:
    @pytest.fixture
    def wrong(self, seat: Seat) -> Path:
        """A key ring that opens nothing of this database, in which one batch is done and two accounts lie."""
        seat.ok(*noop_run(seat, users=2))
        ring = seat.folder / "wrong-keys"
        ring.write_text(seat.ok("keys", "new"))
        return ring

    def test_a_run_with_the_wrong_ring_begins_nothing(
        self, seat: Seat, wrong: Path, database_url: str
    ) -> None:
        file = manifest(seat, source(), batch("other"))

        done = seat.do("run", "-f", file, "--keys-file", wrong)

        assert done.returncode == 2
        assert f"the key ring {wrong} opens none of the accounts looked at: account/noop/" in complaint(done)
        assert "which is not in the key ring" in done.stderr
        with closing(connect(database_url)) as conn:
            assert batches.find(conn, "other") is None

    def test_doctor_names_it(self, seat: Seat, wrong: Path) -> None:
        done = seat.do("doctor", "--keys-file", wrong)

        assert done.returncode == 1
        assert f"FAIL credentials: the key ring {wrong} opens none of the accounts looked at" in done.stdout

    def test_a_worker_with_the_wrong_ring_takes_nothing(
        self, seat: Seat, wrong: Path, database_url: str
    ) -> None:
        """It is configuration: exit code 78, and no account is charged or parked for it."""
        with closing(connect(database_url)) as conn:
            batch_id = _plan_again(seat, conn)
            seat.environment |= {
                "CRAWLFLEET_KEYS_FILE": str(wrong),
                "CRAWLFLEET_BATCH": "again",
                "WORKER_ID": "0",
            }

            done = seat.do("worker")

            assert done.returncode == WORKER_FAILS
            assert "opens none of the accounts looked at" in complaint(done)
            assert set(task_states(conn, batch_id).values()) == {"ready"}
            assert scalar(conn, "select count(*) from account where state = 'ok'") == 2

    def test_one_account_that_cannot_be_opened_ends_crashed_and_alone(
        self, seat: Seat, database_url: str
    ) -> None:
        """Never `auth`: it is our store that is broken, not what the seller gave us."""
        seat.ok("accounts", "import", accounts_file(seat, *map(account_line, (1, 2, 3))))
        with closing(connect(database_url)) as conn:
            conn.execute("update account set credentials = set_byte(credentials, 40, 0) where user_id = 2")
        budgets = {"crashed": 0}

        done = seat.do("run", "-f", manifest(seat, source(budgets=budgets, options={"items": 2}), batch()))

        assert done.returncode == 3
        assert "noop: 1 crashed, CannotBeOpened: account/noop/2 cannot be opened with key" in done.stdout
        assert {user for user, _ in keys_of(seat.items("nightly"))} == {1, 3}
        assert len(seat.ok("accounts", "list", "--needs-attention").splitlines()) == 1

    def test_a_ring_that_is_not_there(self, seat: Seat) -> None:
        done = seat.do(
            "accounts", "import", accounts_file(seat, account_line(1)), "--keys-file", "/nowhere/keys"
        )

        assert done.returncode == 2
        assert "the key ring /nowhere/keys does not exist; mount it or correct the path" in complaint(done)

    def test_a_ring_that_is_none(self, seat: Seat) -> None:
        ring = seat.folder / "ring"
        ring.write_text("k1:c2VjcmV0LXdvcmQ=\n")

        done = seat.do(*noop_run(seat, users=1), "--keys-file", ring)

        assert done.returncode == 2
        assert f"{ring} line 1: the key 'k1' has 11 bytes, not 32" in complaint(done)
        assert "c2VjcmV0" not in done.stderr


def _plan_again(seat: Seat, conn: Connection) -> int:
    """A second batch `again` over the same accounts, which nobody has begun."""
    row = conn.execute(
        "insert into batch (uid, name, workers, worker_limit, selector, state, started_at, total)"
        " values ('again', 'again', 1, 1, '{}', 'running', now(), 2) returning batch_id"
    ).fetchone()
    assert row
    conn.execute(
        "insert into batch_source select %s, source_id, settings from batch_source limit 1", (row[0],)
    )
    conn.execute(
        "insert into task (user_id, batch_id, task_no, state, source_id, egress_id, rank, shard)"
        " select user_id, %s, task_no, 'ready', source_id, egress_id, rank, 0 from task",
        (row[0],),
    )
    return int(row[0])


class TestManifests:
    def test_that_cannot_be_parsed(self, seat: Seat) -> None:
        file = seat.folder / "broken.yaml"
        file.write_text("kind: CrawlBatch\nspec: [unclosed\n")

        done = seat.do("run", "-f", file)

        assert done.returncode == 2
        assert f"{file}, line 3, column 1: " in complaint(done)

    def test_with_wrong_fields_name_each_of_them(self, seat: Seat) -> None:
        file = manifest(seat, source(cap=-1, pace=3), batch())

        done = seat.do("run", "-f", file)

        assert done.returncode == 2
        assert (
            f"{file}, document 1: CrawlSource/noop: spec.maxConcurrent: expected a whole number"
            in complaint(done)
        )
        assert "spec.pace: unknown field" in done.stderr

    def test_with_an_unknown_source(self, seat: Seat) -> None:
        file = manifest(seat, source("noop"), batch(sources=["naver"]))

        done = seat.do("run", "-f", file)

        assert done.returncode == 2
        assert (
            f"{file}, document 2: CrawlBatch/nightly: spec.sources[0]: there is no CrawlSource 'naver'"
            in (complaint(done))
        )

    def test_with_an_unknown_adapter(self, seat: Seat) -> None:
        done = seat.do("run", "-f", manifest(seat, source(adapter="naver"), batch()))

        assert done.returncode == 2
        assert "document 1: CrawlSource/noop: spec.adapter: unknown adapter 'naver'; installed: " in (
            complaint(done)
        )

    def test_with_an_option_that_the_adapter_does_not_know(self, seat: Seat) -> None:
        done = seat.do("run", "-f", manifest(seat, source(options={"speed": 3}), batch()))

        assert done.returncode == 2
        assert "document 1: CrawlSource/noop: spec.options: noop: unknown option 'speed'" in complaint(done)

    def test_with_nothing_to_run_or_declare(self, seat: Seat) -> None:
        file = manifest(seat, proxy_secret("http://127.0.0.1:1"))

        done = seat.do("run", "-f", file)

        assert done.returncode == 2
        assert complaint(done) == f"crawlfleet: neither a CrawlBatch nor a CrawlSource in {file}\n"

    def test_of_a_batch_whose_source_is_declared_but_not_in_the_files(self, seat: Seat) -> None:
        seat.ok("run", "-f", manifest(seat, source()))

        done = seat.do("run", "-f", manifest(seat, batch()))

        assert done.returncode == 2
        assert (
            "there is no CrawlSource 'noop' in the files; add its document, even if the source is declared"
            in (complaint(done))
        )

    @pytest.mark.parametrize("spec", [{"suspend": True}, {"stop": "Drain"}])
    def test_that_tell_the_batch_to_stand_still(self, seat: Seat, spec: dict[str, Any]) -> None:
        done = seat.do("run", "-f", manifest(seat, source(), batch(**spec)))

        assert done.returncode == 2
        assert "CrawlBatch/nightly: spec.suspend and spec.stop are for a cluster" in complaint(done)

    def test_that_are_not_there(self, seat: Seat) -> None:
        done = seat.do("run", "-f", "nowhere.yaml")

        assert done.returncode == 2
        assert complaint(done) == "crawlfleet: nowhere.yaml does not exist\n"

    @pytest.mark.parametrize(
        "words", [("run",), ("run", "-f", "x.yaml", "--workers", "0"), ("why", "nobody"), ("naver",)]
    )
    def test_options_that_are_none(self, seat: Seat, words: tuple[str, ...]) -> None:
        done = seat.do(*words)

        assert done.returncode == 2
        assert "crawlfleet" in complaint(done)


class TestAccounts:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (
                account_line(2, source="cafe24"),
                "credentials are empty: cafe24: credential 'mall_id' is missing",
            ),
            (seller(2, refresh_token=""), "credentials: cafe24: credential 'refresh_token' is missing"),
            (account_line(2, source="naver"), "source: there is no source 'naver'; known: "),
        ],
        ids=["no credentials", "no token", "unknown source"],
    )
    def test_a_run_imports_nothing_of_a_file_with_a_bad_line(
        self, seat: Seat, line: dict[str, Any], reason: str
    ) -> None:
        accounts = accounts_file(seat, account_line(1), line)

        done = seat.do("run", "-f", manifest(seat, source(), batch()), "--accounts", accounts)

        assert done.returncode == 2
        assert f"{accounts} line 2: {reason}" in complaint(done)
        assert len(seat.ok("accounts", "list").splitlines()) == 1

    def test_a_line_on_stdin_of_a_source_that_nobody_declared(self, seat: Seat) -> None:
        line = json.dumps(account_line(1, source="naver", token="x"))

        done = seat.do("accounts", "import", "-", stdin=line.encode())

        assert done.returncode == 2
        assert "stdin line 1: source: there is no source 'naver'" in complaint(done)
        assert "declare another one with `crawlfleet run -f FILE` of its CrawlSource" in done.stderr

    def test_a_file_that_is_not_there(self, seat: Seat) -> None:
        done = seat.do("accounts", "import", "nowhere.jsonl")

        assert done.returncode == 2
        assert complaint(done) == "crawlfleet: cannot read nowhere.jsonl: No such file or directory\n"


class TestShop:
    def crawl(self, seat: Seat, **spec: Any) -> subprocess.CompletedProcess[str]:
        """Crawl two sellers of a cafe24 source; the second run of a test finds a batch of another spec."""
        shop = source("cafe24", adapter="cafe24", **spec.pop("source"))
        file = manifest(seat, shop, batch("local", ["cafe24"]), *spec.pop("secrets", ()))
        return seat.do("run", "-f", file, "--accounts", accounts_file(seat, seller(1), seller(2)))

    def test_that_is_down(self, seat: Seat) -> None:
        """The run ends, tells what happened where, and a retry crawls all when it is up again."""
        port = free_port()
        settings = {"baseURL": f"http://127.0.0.1:{port}/{{mall_id}}", "budgets": {"retry": 1}}

        done = self.crawl(seat, source=settings)

        assert done.returncode == 3
        assert (
            "  cafe24: 2 retry, ConnectFailed: the shop could not be reached; check that it is up"
            in done.stdout
        )
        seat.ok("retry", "local")
        with ShopServer(Cafe24Shop(SHOP), port=port):
            assert self.crawl(seat, source=settings).returncode == 0
        assert {item["user_id"] for item in seat.items("local")} == {1, 2}

    def test_whose_reply_nobody_has_seen(self, seat: Seat) -> None:
        with ShopServer(Cafe24Shop(SHOP)) as shop:
            shop.switch_account("demo2", unknown_reply=True)

            done = self.crawl(seat, source={"baseURL": shop.url + "/{mall_id}"})

        assert done.returncode == 3
        assert "  cafe24: 1 of 2 ok, 1 dead, 0 cancelled" in done.stdout
        assert "  cafe24: 1 bug, UnexpectedReply: " in done.stdout
        assert "snapshot: " in seat.ok("why", "2")
        assert {item["user_id"] for item in seat.items("local")} == {1}

    @pytest.mark.parametrize("how", ["nobody listens", "wrong password"])
    def test_behind_a_proxy_that_refuses(self, seat: Seat, how: str) -> None:
        """The egress is cut, not the accounts; the error names the proxy, never its password."""
        with (
            ShopServer(Cafe24Shop(SHOP)) as shop,
            HttpProxy("exit-1", credentials=("crawler", "right-word")) as proxy,
        ):
            port = proxy.url.rpartition(":")[2] if how == "wrong password" else str(free_port())
            done = self.crawl(
                seat,
                source={
                    "baseURL": shop.url + "/{mall_id}",
                    "egresses": [{"name": "exit-1", "proxySecretRef": {"name": "exit-1"}}],
                    "coolDownSeconds": {"first": 1, "longest": 1},
                    "budgets": {"throttledSeconds": 2},
                },
                secrets=[proxy_secret(f"http://127.0.0.1:{port}")],
            )

        assert done.returncode == 3
        assert "  cafe24: 2 blocked, Proxy" in done.stdout
        assert "planted-word" not in done.stdout + done.stderr + seat.ok("why", "1")
        assert len(seat.ok("accounts", "list", "--needs-attention").splitlines()) == 1
        assert shop.witness.counters().requests == 0


def proxy_secret(url: str) -> dict[str, Any]:
    values = {"url": url, "username": "crawler", "password": "planted-word"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "exit-1"}, "stringData": values}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
class TestFullDisk:
    @pytest.fixture
    def small_disk(self, bare_seat: Seat) -> Iterator[Seat]:
        """A seat whose state folder is a disk of its own, too small for a new PostgreSQL."""
        bare_seat.state_dir.mkdir()
        try:
            _mount(bare_seat.state_dir, "size=24m,mode=0711")
        except subprocess.CalledProcessError:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing("this root may not mount, as in a container: docker run --cap-add SYS_ADMIN")
        try:
            yield bare_seat
        finally:
            bare_seat.close()
            subprocess.run(["umount", "--lazy", str(bare_seat.state_dir)], check=True)

    def test_before_postgresql_is_set_up(self, small_disk: Seat) -> None:
        done = small_disk.do(*noop_run(small_disk, users=2))

        assert done.returncode == 1
        assert f"the embedded PostgreSQL in {small_disk.state_dir}/postgres could not be initialised." in (
            complaint(done)
        )
        assert "The disk is full: " in done.stderr
        assert "No space left on device" in done.stderr
        small_disk.assert_nothing_is_left()

    def test_in_the_middle_of_a_run(self, small_disk: Seat) -> None:
        """The run says so; once there is room again nothing was lost, if need be by the same command."""
        disk = small_disk.state_dir
        _mount(disk, "remount,size=200m")
        words = noop_run(small_disk, users=24, duration_s=0.3, items=300)
        run = small_disk.start(*words)
        until(lambda: small_disk.crawled("nightly") >= 4, "the first crawls")
        filler = disk / "filler"
        _fill(filler)
        run.wait_for(f"The disk of {disk} is full: ")  # it may look while the disk fills

        filler.unlink()

        assert run.exit_code() in (0, 1)
        assert "Traceback" not in run.said
        small_disk.assert_nothing_is_left()
        small_disk.ok(*words)
        keys = keys_of(small_disk.items("nightly"))
        assert len(keys) == len(set(keys)) == 24 * 300


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def _fill(file: Path) -> None:
    """Take all the room of its disk."""
    with file.open("wb", buffering=0) as opened, suppress(OSError):
        while True:
            opened.write(bytes(2**16))


def test_a_port_that_is_taken(bare_seat: Seat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = bare_seat.do("shops", "--cafe24-port", str(port))

    assert done.returncode == 1
    assert (
        f"cannot listen on port {port} of 127.0.0.1: Address already in use; end what uses it or give --cafe24-port"
        in complaint(done)
    )
