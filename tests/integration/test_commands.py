"""Every other command as its user meets it: what it prints, what it changes, what it exits with."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from builders import scalar
from fleet import until
from terminal import (
    COMMAND,
    Running,
    Seat,
    account_line,
    accounts_file,
    batch,
    keys_of,
    manifest,
    noop_run,
    seat_in,
    source,
    two_items_each,
)

from crawlfleet.cli import main
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import client_secret, refresh_token
from crawlfleet.demo.server import ShopServer
from crawlfleet.local.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
SHOP = Cafe24Config(orders_per_mall=3, products_per_mall=2)
SELLERS = (1, 2, 3, 4)
BROKEN = 3
"""The seller whose mall answers as nobody has ever seen."""


@pytest.fixture
def seat(open_dir: Path, database_url: str) -> Iterator[Seat]:
    with seat_in(open_dir, database_url) as made:
        yield made


def seller(user_id: int) -> dict[str, Any]:
    mall = f"demo{user_id}"
    return account_line(
        user_id,
        source="cafe24",
        mall_id=mall,
        client_id="crawlfleet-demo",
        client_secret=client_secret(SHOP),
        refresh_token=refresh_token(SHOP, mall),
    )


@pytest.fixture(scope="module")
def crawled(module_dir: Path) -> Iterator[Seat]:
    """A seat after one batch `local`: four sellers, one of whom failed. Its server goes on, so commands are quick."""
    with (
        seat_in(module_dir) as seat,
        EmbeddedPostgres(seat.state_dir, settings={"fsync": "off"}),
        ShopServer(Cafe24Shop(SHOP)) as shop,
    ):
        shop.switch_account(f"demo{BROKEN}", unknown_reply=True)
        file = manifest(
            seat,
            source("cafe24", adapter="cafe24", baseURL=shop.url + "/{mall_id}"),
            batch("local", ["cafe24"]),
            source("noop", options={"items": 1}),
            batch("other", ["noop"]),
        )
        lines = [*map(seller, SELLERS), account_line(1)]
        done = seat.do("run", "-f", file, "--accounts", accounts_file(seat, *lines))
        assert done.returncode == 3, done.stdout + done.stderr
        yield seat


class TestStatus:
    def test_without_a_name_lists_the_batches(self, crawled: Seat) -> None:
        header, *rows = crawled.ok("status").splitlines()

        assert header.split() == ["BATCH", "STATE", "ROUND", "TASKS", "STARTED", "UID"]
        assert [row.split()[:4] for row in rows] == [
            ["other", "closed", "1", "1"],
            ["local", "closed", "1", "4"],
        ]

    def test_of_one_batch_tells_counts_and_why_tasks_died(self, crawled: Seat) -> None:
        said = crawled.ok("status", "local")

        assert "3/4 done, 1 failed, 0 cancelled, took " in said
        assert "  cafe24: 1 bug, " in said
        assert f"(for example user {BROKEN})" in said

    def test_of_a_failure_whose_cause_is_in_the_logs_tells_where_they_are(
        self, seat: Seat, database_url: str
    ) -> None:
        seat.ok(*noop_run(seat, users=1))
        with psycopg.connect(database_url) as conn:
            conn.execute("update task set state = 'dead', verdict = 'bug'")
            conn.execute(
                "insert into failure (lease_id, batch_id, task_no, verdict, reason, detail)"
                " select 1, batch_id, task_no, 'bug', 'KeyError', 'the worker''s log says where' from task"
            )

        for words in (("status", "nightly"), ("why", "1")):
            assert f"  logs: {seat.state_dir}/logs/nightly\n" in seat.ok(*words)

    def test_of_an_unknown_batch_names_those_there_are(self, crawled: Seat) -> None:
        done = crawled.do("status", "locale")

        assert done.returncode == 2
        assert "no batch 'locale' in this database; recent batches: local, other" in done.stderr


class TestWhy:
    def test_tells_account_and_task(self, crawled: Seat) -> None:
        items = SHOP.orders_per_mall + SHOP.products_per_mall

        account, task = crawled.ok("why", "2").splitlines()

        assert re.fullmatch(
            rf"account at cafe24: ok, {items} items stored, a crawl takes about \d\.\d s", account
        )
        assert re.fullmatch(r"local of \d{4}-\d\d-\d\dT[\d:]+Z, cafe24: ok", task)

    def test_tells_the_newest_batch_first(self, crawled: Seat) -> None:
        tasks = [line for line in crawled.ok("why", "1").splitlines() if not line.startswith("account")]

        assert [line.split()[0] for line in tasks] == ["other", "local"]

    def test_tells_each_attempt_and_shows_the_snapshot(self, crawled: Seat) -> None:
        said = crawled.ok("why", str(BROKEN))

        assert ", cafe24: dead (bug)\n" in said
        assert " bug: " in said
        assert "snapshot: " in said

    def test_of_an_unknown_user_is_bad_input(self, crawled: Seat) -> None:
        done = crawled.do("why", "999")

        assert done.returncode == 2
        assert "user 999 has neither an account nor a task" in done.stderr


class TestResults:
    def test_are_the_items_of_the_accounts_that_ended_ok(self, crawled: Seat) -> None:
        items = crawled.items("local")

        assert {item["user_id"] for item in items} == {1, 2, 4}
        assert set(items[0]) == {"user_id", "source", "kind", "external_id", "fetched_at", "body"}

    def test_csv_holds_the_same(self, crawled: Seat) -> None:
        rows = list(csv.DictReader(crawled.ok("results", "local", "--format", "csv").splitlines()))

        as_text = [{**item, "user_id": str(item["user_id"])} for item in crawled.items("local")]
        assert [{**row, "body": json.loads(row["body"])} for row in rows] == as_text

    def test_of_one_kind(self, crawled: Seat) -> None:
        lines = crawled.ok("results", "local", "--kind", "product").splitlines()

        assert len(lines) == 3 * SHOP.products_per_mall
        assert {json.loads(line)["kind"] for line in lines} == {"product"}

    def test_of_a_kind_that_matches_nothing_says_so(self, crawled: Seat) -> None:
        done = crawled.do("results", "local", "--kind", "parcel")

        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == "crawlfleet: no item matches --kind parcel\n"

    def test_of_one_source(self, crawled: Seat) -> None:
        assert len(crawled.ok("results", "other", "--source", "noop").splitlines()) == 1

    def test_of_a_source_that_the_batch_has_not(self, crawled: Seat) -> None:
        done = crawled.do("results", "local", "--source", "noop")

        assert done.returncode == 2
        assert "batch local has no source 'noop'; it has: cafe24" in done.stderr

    def test_into_a_file(self, crawled: Seat) -> None:
        file = crawled.folder / "out.jsonl"

        assert crawled.ok("results", "local", "--output", file) == ""

        assert file.read_text() == crawled.ok("results", "local")

    def test_into_a_folder_that_is_not_there(self, crawled: Seat) -> None:
        done = crawled.do("results", "local", "--output", crawled.folder / "nowhere" / "out.jsonl")

        assert done.returncode == 2
        assert "cannot write" in done.stderr
        assert "No such file or directory" in done.stderr

    @pytest.mark.parametrize("words", [("results", "local"), ("accounts", "list")])
    def test_a_reader_that_has_seen_enough_is_no_error(self, crawled: Seat, words: tuple[str, ...]) -> None:
        """As with `| head -0`: the other end is closed before anything is written."""
        process = subprocess.Popen(
            crawled.arguments(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=crawled.environment
        )
        assert process.stdout
        process.stdout.close()

        assert process.stderr
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 0

    def test_a_reader_may_pause_for_longer_than_a_transaction_may_idle(self, seat: Seat) -> None:
        """A pager does: whole pages are in the pipe, the rest is not read yet."""
        seat.ok(*noop_run(seat, users=4, item_bytes=20_000, items=300))
        process = subprocess.Popen(
            seat.arguments("results", "nightly"), stdout=subprocess.PIPE, env=seat.environment
        )
        assert process.stdout
        with process.stdout as output:
            assert output.readline().startswith(b"{")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(6)
            rest = sum(1 for _ in output)

        assert process.wait() == 0
        assert rest == 4 * 300 - 1


class TestAccounts:
    def test_import_counts_lines_and_new_credentials(self, seat: Seat) -> None:
        file = accounts_file(seat, account_line(1), account_line(2))

        assert seat.ok("accounts", "import", file) == "2 accounts, 2 with new credentials\n"
        assert seat.ok("accounts", "import", file) == "2 accounts, 0 with new credentials\n"

    def test_import_takes_csv(self, seat: Seat) -> None:
        file = seat.folder / "accounts.csv"
        file.write_text(
            "user_id,source,subscription,last_login_at,credentials.duration_s\n7,noop,free,,1.5\n"
        )

        assert seat.ok("accounts", "import", file) == "1 account, 1 with new credentials\n"
        assert seat.ok("accounts", "list").splitlines()[1].split() == ["7", "noop", "ok", "free", "-", "-"]

    def test_import_takes_lines_on_stdin(self, seat: Seat) -> None:
        done = seat.do("accounts", "import", "-", stdin=json.dumps(account_line(7)).encode())

        assert (done.returncode, done.stdout) == (0, "1 account, 1 with new credentials\n")

    def test_of_a_file_with_a_bad_line_nothing_is_written(self, seat: Seat) -> None:
        file = accounts_file(seat, account_line(1), account_line(0))

        done = seat.do("accounts", "import", file)

        assert done.returncode == 2
        assert f"{file} line 2: user_id: expected a whole number from 1" in done.stderr
        assert len(seat.ok("accounts", "list").splitlines()) == 1

    def test_show_tells_the_state_and_no_secret(self, crawled: Seat) -> None:
        said = crawled.ok("accounts", "show", "1")

        header, cafe24, noop = (line.split() for line in said.splitlines())
        assert header[:3] == ["USER", "SOURCE", "STATE"]
        assert [cafe24[:3], noop[:3]] == [["1", "cafe24", "ok"], ["1", "noop", "ok"]]
        assert refresh_token(SHOP, "demo1", 1) not in said

    def test_show_of_an_unknown_user_is_bad_input(self, crawled: Seat) -> None:
        assert crawled.do("accounts", "show", "999").returncode == 2

    def test_tables_are_whole_lines_however_narrow_the_terminal(self, crawled: Seat) -> None:
        narrow = crawled.environment | {"COLUMNS": "20"}
        done = subprocess.run(
            crawled.arguments("accounts", "show", "2"), env=narrow, capture_output=True, text=True, check=True
        )

        assert len(done.stdout.splitlines()) == 2
        assert "…" not in done.stdout

    def test_a_disabled_account_is_left_out_until_it_is_enabled(self, seat: Seat) -> None:
        seat.ok("accounts", "import", accounts_file(seat, account_line(1), account_line(2)))
        file = manifest(seat, source(), batch("without"))
        assert seat.ok("accounts", "disable", "2") == "user 2: disabled at noop\n"
        seat.ok("run", "-f", file)
        assert "1/1 done" in seat.ok("status", "without")

        assert seat.ok("accounts", "enable", "2", "--source", "noop") == "user 2: enabled at noop\n"
        seat.ok("run", "-f", manifest(seat, source(), batch("with")))

        assert "2/2 done" in seat.ok("status", "with")

    def test_enable_at_a_source_without_such_an_account(self, crawled: Seat) -> None:
        done = crawled.do("accounts", "enable", "2", "--source", "noop")

        assert done.returncode == 2
        assert "user 2 has no account at noop in this database" in done.stderr

    def test_who_must_consent_again_is_listed_and_import_heals(self, seat: Seat) -> None:
        """A mall whose tokens were revoked: `auth`, named, never tried again until its credentials change."""
        with ShopServer(Cafe24Shop(SHOP)) as shop:
            shop.switch_account("demo2", revoke_tokens=True)
            seat.ok("accounts", "import", accounts_file(seat, seller(1), seller(2)))
            documents = [source("cafe24", adapter="cafe24", baseURL=shop.url + "/{mall_id}")]
            done = seat.do("run", "-f", manifest(seat, *documents, batch("first", ["cafe24"])))
            assert done.returncode == 3

            assert "to try again" not in done.stdout
            assert "accounts that ended auth need a person: `crawlfleet accounts list" in done.stdout
            (line,) = seat.ok("accounts", "list", "--needs-attention").splitlines()[1:]
            assert line.split()[:3] == ["2", "cafe24", "auth"]
            said = seat.ok("retry", "first").splitlines()
            assert said[0] == "first: 0 tasks ready again"
            assert said[1].startswith(
                "first: 1 task left dead: their accounts need a person. `crawlfleet accounts"
            )

            shop.switch_account("demo2", revoke_tokens=False)
            consented = seller(2)
            consented["credentials"]["refresh_token"] = refresh_token(SHOP, "demo2", 5)
            seat.ok("accounts", "import", accounts_file(seat, consented))
            assert len(seat.ok("accounts", "list", "--needs-attention").splitlines()) == 1
            seat.ok("run", "-f", manifest(seat, *documents, batch("second", ["cafe24"])))

    def test_purge_leaves_nothing_of_a_user(self, seat: Seat, database_url: str) -> None:
        seat.ok(*noop_run(seat, users=2))

        assert seat.ok("accounts", "purge", "1") == "user 1: accounts, snapshots and 2 items deleted\n"

        assert keys_of(seat.items("nightly")) == two_items_each(2)[2:]
        assert len(seat.ok("accounts", "list").splitlines()) == 2
        with psycopg.connect(database_url) as conn:
            assert scalar(conn, "select count(*) from item where user_id = 1") == 0

    def test_purge_of_an_unknown_user_is_bad_input(self, crawled: Seat) -> None:
        done = crawled.do("accounts", "purge", "999")

        assert done.returncode == 2
        assert "user 999 has neither an account nor an item in this database" in done.stderr


class TestLevers:
    @pytest.fixture
    def run(self, seat: Seat) -> Running:
        """A run that would take an hour, with its four crawls under way."""
        run = seat.start(*noop_run(seat, users=6, duration_s=3600, workers=2), "-o", "json")
        run.wait_for("4 running")
        until(lambda: seat.ok("status", "nightly").count("WORKER_ID") == 2, "both workers")
        return run

    def test_status_shows_the_workers_of_an_open_batch(self, seat: Seat, run: Running) -> None:
        said = seat.ok("status", "nightly")

        assert "4 running, 2 waiting" in said
        assert "waits for: permits (4 of 4 held)" in said
        tasks = [seat.ok("why", str(user)).splitlines()[1].partition("noop: ")[2] for user in range(1, 7)]
        assert sorted(tasks) == ["leased"] * 4 + ["ready, waits for: permits (4 of 4 held)"] * 2
        assert seat.do("results", "nightly").stderr.startswith("crawlfleet: batch nightly is open: these are")
        workers = re.findall(r"worker \d+: WORKER_ID (\d) on \S+, pid (\d+), (\d) of 10 slots busy", said)
        assert [(int(no), int(pid)) for no, pid, _ in workers] == [(i, seat.worker(i, run)) for i in (0, 1)]
        assert sum(int(busy) for *_, busy in workers) == 4

    def test_cancel_ends_a_running_batch(self, seat: Seat, run: Running) -> None:
        assert seat.ok("cancel", "nightly") == "nightly: cancelled\n"

        assert run.exit_code() == 3
        told = json.loads(run.stdout)
        assert (told["state"], told["counts"]["noop"]["cancelled"]) == ("Cancelled", 6)
        assert seat.ok("cancel", "nightly") == "nightly: closed already\n"

    def test_a_user_who_is_crawled_right_now_is_not_purged(self, seat: Seat, run: Running) -> None:
        done = seat.do("accounts", "purge", "1")

        assert done.returncode == 1
        assert "user 1 is being crawled right now" in done.stderr
        assert run.process.poll() is None

    def test_a_drained_worker_ends_and_the_other_goes_on(self, seat: Seat) -> None:
        run = seat.start(*noop_run(seat, users=24, duration_s=0.5, workers=2))
        until(lambda: seat.crawled("nightly") >= 4, "the first crawls")
        with seat.suspended():
            until(lambda: seat.ok("status", "nightly").count("WORKER_ID") == 2, "both workers")
            first = next(line for line in seat.ok("status", "nightly").splitlines() if "WORKER_ID 0 " in line)

            number = first.split()[1].rstrip(":")
            assert seat.ok("drain", number) == f"worker {number}: draining\n"

        assert run.exit_code() == 0
        assert "worker ended code=75" in (seat.state_dir / "logs/nightly/worker-0.log").read_text()
        assert keys_of(seat.items("nightly")) == two_items_each(24)

    def test_draining_a_worker_that_is_not_there_is_bad_input(self, crawled: Seat) -> None:
        done = crawled.do("drain", "12345")

        assert done.returncode == 2
        assert "no worker has the registration 12345" in done.stderr

    def test_draining_a_worker_that_has_ended_says_when(self, crawled: Seat) -> None:
        done = crawled.do("drain", "1")

        assert done.returncode == 2
        assert re.search(r"worker 1 has ended already, at \d{4}-\d\d-\d\dT", done.stderr)

    def test_draining_a_silent_worker_says_so(self, seat: Seat, database_url: str) -> None:
        seat.ok(*noop_run(seat, users=1))
        with psycopg.connect(database_url) as conn:
            conn.execute("update worker set ended_at = null, renewed_tick = renewed_tick - 100")

        assert "worker 1: draining, but it does not answer" in seat.ok("drain", "1")

    def test_a_batch_that_nobody_works_on_is_cancelled_at_once(self, seat: Seat) -> None:
        run = seat.start(*noop_run(seat, users=24, duration_s=0.5))
        until(lambda: seat.crawled("nightly") >= 1, "the first crawl")
        run.signal(signal.SIGINT)
        run.exit_code()

        assert seat.ok("cancel", "nightly") == "nightly: cancelled\n"

        assert "closed" in seat.ok("status", "nightly")

    def test_retry_of_a_closed_batch_crawls_only_what_failed(self, seat: Seat) -> None:
        with ShopServer(Cafe24Shop(SHOP)) as shop:
            shop.switch_account("demo3", unknown_reply=True)
            file = manifest(
                seat,
                source("cafe24", adapter="cafe24", baseURL=shop.url + "/{mall_id}"),
                batch("local", ["cafe24"]),
            )
            words: list[str | Path] = [
                "run",
                "-f",
                file,
                "--accounts",
                accounts_file(seat, *map(seller, SELLERS)),
            ]
            assert seat.do(*words).returncode == 3
            shop.switch_account("demo3", unknown_reply=False)
            assert seat.ok("retry", "local", "--verdict", "retry") == "local: 0 tasks ready again\n"

            said = seat.ok("retry", "local", "--verdict", "bug")

            assert (
                said
                == "local: 1 task ready again; in a cluster the operator sees to them, else run the batch again\n"
            )
            assert "3/4 done, 0 running, 1 waiting, 0 retrying, 0 failed" in seat.ok("status", "local")
            assert "4 of 4 ok" in seat.ok(*words)
        assert seat.crawled("local") == len(SELLERS) + 1
        assert "round 2" in seat.ok("status", "local")


class TestUpkeep:
    def test_doctor_finds_everything_well(self, crawled: Seat) -> None:
        said = crawled.ok("doctor").splitlines()

        assert [line.split()[0] for line in said] == ["ok"] * 7
        for what in ("keys:", "database: PostgreSQL", "schema:", "credentials:", "source cafe24:", "chrome:"):
            assert any(what in line for line in said)

    def test_doctor_makes_no_key_ring(self, seat: Seat) -> None:
        done = seat.do("doctor")

        assert done.returncode == 1
        assert f"FAIL keys: the key ring {seat.state_dir}/keys does not exist" in done.stdout
        assert "FAIL credentials: not looked at, since the keys cannot be read" in done.stdout
        assert not (seat.state_dir / "keys").exists()

    def test_doctor_makes_no_database(self, open_dir: Path) -> None:
        with seat_in(open_dir) as seat:
            done = seat.do("doctor")

            assert done.returncode == 1
            assert f"FAIL database: there is no database in {seat.state_dir}" in done.stdout
            assert not seat.state_dir.exists()

    def test_migrate_says_what_it_did(self, seat: Seat) -> None:
        assert seat.ok("migrate") == "the schema is up to date\n"

    def test_migrate_is_not_for_the_embedded_database(self, open_dir: Path) -> None:
        with seat_in(open_dir) as seat:
            assert seat.do("migrate").returncode == 2

    def test_crds_are_two_documents(self, crawled: Seat) -> None:
        kinds = [crd["spec"]["names"]["kind"] for crd in yaml.safe_load_all(crawled.ok("crds"))]

        assert kinds == ["CrawlSource", "CrawlBatch"]

    def test_crds_may_be_a_file_each(self, crawled: Seat, tmp_path: Path) -> None:
        assert crawled.ok("crds", "--into", tmp_path) == ""

        assert sorted(file.name for file in tmp_path.iterdir()) == ["crawlbatches.yaml", "crawlsources.yaml"]

    def test_a_rotation_seals_all_with_the_new_key_and_the_old_one_can_go(self, seat: Seat) -> None:
        seat.ok(*noop_run(seat, users=3))
        ring = seat.state_dir / "keys"
        new = seat.ok("keys", "new")
        ring.write_text(new + ring.read_text())

        said = seat.ok("keys", "rotate")

        assert said == f"sealed anew with key {new.partition(':')[0]}: 3 accounts, 0 proxies\n"
        assert "0 accounts, 0 proxies" in seat.ok("keys", "rotate")
        ring.write_text(new)
        assert "ok   credentials: the keys open them" in seat.ok("doctor")

    def test_a_rotation_with_the_wrong_ring_names_what_it_cannot_open(self, seat: Seat) -> None:
        seat.ok(*noop_run(seat, users=3))
        other = seat.folder / "other-keys"
        other.write_text(seat.ok("keys", "new"))

        done = seat.do("keys", "rotate", "--keys-file", other)

        assert done.returncode == 1
        assert "0 accounts" in done.stdout
        assert "account/noop/1 is sealed with key" in done.stderr


COMMANDS = [
    "run", "plan", "accounts", "accounts import", "accounts list", "accounts show", "accounts enable", "accounts disable",
    "accounts purge", "status", "why", "results", "retry", "cancel", "drain", "worker", "shops", "migrate",
    "doctor", "crds", "keys", "keys new", "keys rotate", "chrome",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])

    assert ended.value.code == 0
    assert f" {command} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["accounts", "show", "1"], ["status"], ["keys", "new"]])
def test_a_wrong_option_shows_the_usage_of_its_command(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--wrong"])

    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: crawlfleet {' '.join(command[:2])} [-h]")
    assert f"crawlfleet {' '.join(command[:2])}: error: unrecognized arguments: --wrong" in said


def test_the_help_names_every_command() -> None:
    said = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout

    named = {line.split()[0] for line in said.splitlines() if line.startswith("    ") and line[4] != " "}
    assert named == {command.split()[0] for command in COMMANDS}


def test_make_help_lists_every_target() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    listed = {line.split()[0] for line in said.splitlines()}
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert set(phony.split()[1:]) <= listed
