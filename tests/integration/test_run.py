"""`crawlfleet run` as its user meets it: to the end, interrupted, and after each kind of sudden death."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import until
from terminal import (
    Seat,
    account_line,
    accounts_file,
    batch,
    free_port,
    keys_of,
    manifest,
    noop_run,
    on_a_terminal,
    seat_in,
    source,
    two_items_each,
)

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.truth import expected_items
from crawlfleet.demo.korea import korean_now
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.store.migrations import migrate

USERS = 20


@pytest.fixture
def seat(open_dir: Path, database_url: str) -> Iterator[Seat]:
    """A seat at the session's server: nothing has to be started first."""
    with seat_in(open_dir, database_url) as made:
        yield made


@pytest.fixture
def own_seat(open_dir: Path) -> Iterator[Seat]:
    """A seat with an embedded server of its own."""
    with seat_in(open_dir) as made:
        yield made


@dataclass(frozen=True)
class Finished:
    """The run of the stand-in shop that the first tests look at from all sides."""

    seat: Seat
    words: list[str | Path]
    code: int
    stdout: str
    stderr: str
    leftovers: dict[int, str]


@pytest.fixture(scope="module")
def finished(module_dir: Path) -> Iterator[Finished]:
    with seat_in(module_dir) as seat:
        file = manifest(seat, *shop_documents(free_port()))
        words: list[str | Path] = ["run", "--shops", "-f", file]
        done = seat.do(*words)
        yield Finished(seat, words, done.returncode, done.stdout, done.stderr, seat.processes())


def shop_documents(port: int, **spec: object) -> list[dict[str, object]]:
    """A cafe24 source at a stand-in shop on that port, and a batch of USERS sellers."""
    url = f"http://127.0.0.1:{port}/{{mall_id}}"
    spec = {"requestsPerSecond": 100, **spec}
    shop = source("cafe24", cap=5, adapter="cafe24", baseURL=url, **spec)
    return [shop, batch("local", ["cafe24"], users={"ids": list(range(1, USERS + 1))}, workers=2)]


class TestToTheEnd:
    def test_every_task_ok_is_exit_code_0(self, finished: Finished) -> None:
        assert finished.code == 0, finished.stdout + finished.stderr
        assert finished.stderr == ""

    def test_no_process_is_left(self, finished: Finished) -> None:
        assert finished.leftovers == {}

    def test_what_is_no_terminal_gets_plain_lines(self, finished: Finished) -> None:
        assert "\x1b" not in finished.stdout
        assert re.search(r"^local: \d+/20 done, \d+ running, .* waits for: ", finished.stdout, re.MULTILINE)

    def test_the_end_tells_what_became_of_the_batch(self, finished: Finished) -> None:
        assert "local: Complete, AllSucceeded, " in finished.stdout
        assert "  cafe24: 20 of 20 ok, 0 dead, 0 cancelled" in finished.stdout

    def test_the_shop_counted_no_impoliteness(self, finished: Finished) -> None:
        assert re.search(
            r"the shop saw \d{2,} requests, at most \d+ at once, and 0 violations", finished.stdout
        )

    def test_the_printed_export_command_brings_the_truth_of_the_shop(self, finished: Finished) -> None:
        """The command is one line as it is to be copied, and it works from anywhere."""
        (line,) = (line for line in finished.stdout.splitlines() if line.startswith("  crawlfleet results"))
        words = [w for w in shlex.split(line)[1:] if w not in ("--output", "local.jsonl", "--state-dir")]
        words.remove(str(finished.seat.state_dir))

        lines = [json.loads(text) for text in finished.seat.ok(*words).splitlines()]

        bodies = {(i["user_id"], i["kind"], i["external_id"]): i["body"] for i in lines}
        assert len(bodies) == len(lines)
        assert bodies == {
            (user, *key): body
            for user in range(1, USERS + 1)
            for key, body in expected_items(Cafe24Config(), f"demo{user}", 7, korean_now().date()).items()
        }

    def test_a_closed_batch_prints_its_summary_and_crawls_nothing(self, finished: Finished) -> None:
        again = finished.seat.do(*finished.words)

        assert again.returncode == 0
        assert "batch local is closed already" in again.stdout
        assert "20 of 20 ok" in again.stdout
        assert "the shop saw" not in again.stdout

    def test_commands_work_after_the_run_without_it(self, finished: Finished) -> None:
        assert "20/20 done" in finished.seat.ok("status", "local")
        assert finished.seat.processes() == {}


class TestSummary:
    def test_json_is_the_contract_and_all_that_stdout_gets(self, seat: Seat) -> None:
        done = seat.do(*noop_run(seat, users=6), "-o", "json")

        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        told = json.loads(line)
        assert isinstance(told.pop("seconds"), float)
        assert told == {
            "batch": "nightly",
            "state": "Complete",
            "reason": "AllSucceeded",
            "counts": {"noop": {"total": 6, "ok": 6, "dead": 0, "cancelled": 0}},
            "failures": {},
        }
        assert "6/6 done" in done.stderr

    def test_another_spec_under_the_same_name_is_another_batch(self, seat: Seat) -> None:
        seat.ok(*noop_run(seat, users=4))

        seat.ok(*noop_run(seat, users=4, selected={"ids": [1]}))

        lines = seat.ok("status").splitlines()[1:]
        assert [line.split()[:4] for line in lines] == [
            ["nightly", "closed", "1", "1"],
            ["nightly", "closed", "1", "4"],
        ]

    def test_another_spec_after_the_batch_was_closed_is_told(self, seat: Seat) -> None:
        seat.ok(*noop_run(seat, users=4))

        said = seat.ok(*noop_run(seat, users=4, selected={"ids": [1]}))

        assert (
            "the spec of nightly has changed since its last batch, which is closed: this is a new one\n"
            in said
        )

    def test_a_batch_that_selects_nobody_says_so(self, seat: Seat) -> None:
        done = seat.do("run", "-f", manifest(seat, source(), batch()), "-o", "json")

        assert done.returncode == 0
        assert "no account is selected" in done.stderr
        assert json.loads(done.stdout)["counts"] == {"noop": {"total": 0, "ok": 0, "dead": 0, "cancelled": 0}}

    def test_all_batches_of_the_files_are_run(self, seat: Seat) -> None:
        """One line of summary each."""
        accounts = accounts_file(seat, account_line(1))
        file = manifest(seat, source(), batch("first"), batch("second"))

        done = seat.do("run", "-f", file, "--accounts", accounts, "-o", "json")

        assert [json.loads(line)["batch"] for line in done.stdout.splitlines()] == ["first", "second"]

    def test_every_worker_works_also_above_the_number_in_the_spec(self, seat: Seat) -> None:
        words = noop_run(seat, users=24, duration_s=0.3, cap=4, workers=1)

        seat.ok(*words, "--workers", "2")

        logs = [seat.state_dir / f"logs/nightly/worker-{i}.log" for i in range(2)]
        assert all(" crawled " in log.read_text() for log in logs)


class TestAnEditedFile:
    """Another spec is another batch: never a second one of that name beside one that is open."""

    @pytest.fixture
    def interrupted(self, seat: Seat) -> Seat:
        """A seat with an open batch that nobody works on."""
        run = seat.start(*noop_run(seat, users=16, duration_s=0.5))
        until(lambda: seat.crawled("nightly") >= 2, "the first crawls")
        run.signal(signal.SIGINT)
        run.exit_code()
        return seat

    def test_is_refused_while_the_batch_before_is_open(self, interrupted: Seat) -> None:
        done = interrupted.do(*noop_run(interrupted, users=16, selected={"ids": [1]}))

        assert done.returncode == 2
        assert "a batch nightly of another spec is still open: run it to its end" in done.stderr
        assert "by `crawlfleet cancel nightly --state-dir " in done.stderr
        assert len(interrupted.ok("status").splitlines()) == 2

    def test_may_change_what_is_no_part_of_the_batch(self, interrupted: Seat) -> None:
        interrupted.ok(*noop_run(interrupted, users=16, cap=8, workers=2))

        assert "16/16 done" in interrupted.ok("status", "nightly")

    def test_batches_of_one_name_are_told_apart_by_uid(self, interrupted: Seat) -> None:
        interrupted.ok("cancel", "nightly")
        interrupted.ok(*noop_run(interrupted, users=16, selected={"ids": [1]}))

        (new, old) = (row.split()[-1] for row in interrupted.ok("status").splitlines()[1:])

        assert f"nightly: closed, round 1 (uid {new}; " in interrupted.ok("status", "nightly")
        assert f"nightly: closed, round 1 (uid {old}; " in interrupted.ok("status", old)
        assert len(interrupted.items("nightly")) == 2


class TestSourcesAlone:
    """The lever of an emergency: a file of CrawlSource documents is declared, and that is all."""

    def test_are_declared_and_told(self, seat: Seat) -> None:
        said = seat.ok("run", "-f", manifest(seat, source("slow", cap=0, requestsPerSecond=2.5)))

        assert said == "declared: slow (paused: maxConcurrent 0, requestsPerSecond 2.5)\n"

    def test_pause_a_batch_that_runs(self, seat: Seat) -> None:
        words = noop_run(seat, users=400, duration_s=0.3, cap=2)
        run = seat.start(*words)
        until(lambda: seat.crawled("nightly") >= 2, "the first crawls")

        seat.ok("run", "-f", manifest(seat, source(cap=0), name="pause.yaml"))

        run.wait_for("waits for: noop is paused (maxConcurrent: 0)")


def test_a_terminal_gets_a_living_picture(seat: Seat) -> None:
    code, drawn = on_a_terminal(seat, *noop_run(seat, users=8, duration_s=0.3))

    assert code == 0, drawn
    assert "Traceback" not in drawn
    assert "\x1b[?25l" in drawn  # the cursor is hidden while the picture lives
    assert "\x1b[?25h" in drawn  # and shown again
    for word in ("done", "running", "waiting", "retrying", "failed", "rate", "ETA", "waits for:"):
        assert word in drawn
    assert "8/8" in drawn


class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_once_drains_and_the_printed_command_resumes(self, seat: Seat, number: signal.Signals) -> None:
        run = seat.start(*noop_run(seat, users=16, duration_s=0.5, workers=2))
        until(lambda: seat.crawled("nightly") >= 2, "the first crawls")

        run.signal(number)

        assert run.exit_code() == 130
        assert "draining" in run.stdout
        assert "Open" in run.stdout
        seat.assert_nothing_is_left()
        (line,) = (line for line in run.stdout.splitlines() if "to resume it: " in line)
        words = shlex.split(line.partition("to resume it: crawlfleet ")[2])
        done = seat.do(*words[: words.index("--state-dir")])
        assert done.returncode == 0, done.stdout
        assert keys_of(seat.items("nightly")) == two_items_each(16)

    def test_a_drain_ends_the_running_crawls_as_ok(self, seat: Seat) -> None:
        """None of them is crawled twice."""
        run = seat.start(*noop_run(seat, users=16, duration_s=0.5))
        until(lambda: seat.crawled("nightly") >= 2, "the first crawls")
        run.signal(signal.SIGINT)
        run.exit_code()

        seat.ok(*noop_run(seat, users=16, duration_s=0.5))

        assert seat.crawled("nightly") == 16

    def test_twice_stops_at_once(self, own_seat: Seat) -> None:
        """The crawls would take an hour more; the next run does not have to outwait their permits."""
        words = noop_run(own_seat, users=4, duration_s=3600)
        run = own_seat.start(*words)
        run.wait_for("4 running")

        run.signal(signal.SIGINT)
        run.wait_for("draining")
        run.signal(signal.SIGINT)

        assert run.exit_code() == 130
        assert "stopped at once" in run.stdout
        own_seat.assert_nothing_is_left()
        said = own_seat.ok("status", "nightly")
        assert "0/4 done, 0 running, 4 waiting" in said
        assert "WORKER_ID" not in said
        accounts_file(own_seat, *(account_line(user, duration_s=0) for user in range(1, 5)))
        assert own_seat.do(*words).returncode == 0
        assert keys_of(own_seat.items("nightly")) == two_items_each(4)

    def test_while_it_starts_it_just_ends(self, own_seat: Seat) -> None:
        run = own_seat.start(*noop_run(own_seat, users=4, duration_s=60))
        until(own_seat.state_dir.exists, "the state folder")

        run.signal(signal.SIGINT)

        assert run.exit_code() == 130
        assert "Traceback" not in run.said
        own_seat.assert_nothing_is_left()


def test_a_run_whose_workers_were_all_drained_says_so(seat: Seat) -> None:
    words = noop_run(seat, users=24, duration_s=0.5)
    run = seat.start(*words)
    until(lambda: seat.crawled("nightly") >= 2, "the first crawls")
    with seat.suspended():
        (line,) = (line for line in seat.ok("status", "nightly").splitlines() if "WORKER_ID" in line)

        seat.ok("drain", line.split()[1].rstrip(":"))

    assert run.exit_code() == 1
    assert "every worker was drained by `crawlfleet drain`; the same command starts new ones" in run.stdout
    seat.ok(*words)


def test_the_picture_after_a_drain_says_so(seat: Seat) -> None:
    words = noop_run(seat, users=24, duration_s=0.5)
    with ThreadPoolExecutor(1) as thread:
        drawn = thread.submit(on_a_terminal, seat, *words)
        until(lambda: seat.crawled("nightly") >= 2, "the first crawls")
        with seat.suspended():
            (line,) = (line for line in seat.ok("status", "nightly").splitlines() if "WORKER_ID" in line)
            seat.ok("drain", line.split()[1].rstrip(":"))

        code, text = drawn.result()

    assert code == 1
    assert text.rpartition("waits for: ")[2].startswith("nothing, since every worker has drained")


class TestSuddenDeath:
    """kill -9 of each kind of process: nothing is left at the end, nothing lost, nothing doubled."""

    def test_of_the_run_itself(self, own_seat: Seat) -> None:
        words = noop_run(own_seat, users=24, duration_s=0.5, workers=2)
        run = own_seat.start(*words)
        until(lambda: own_seat.crawled("nightly") >= 4, "the first crawls")

        run.process.kill()
        run.process.wait()

        own_seat.assert_nothing_is_left()
        own_seat.ok(*words)
        assert keys_of(own_seat.items("nightly")) == two_items_each(24)

    def test_of_a_worker(self, seat: Seat) -> None:
        run = seat.start(*noop_run(seat, users=24, duration_s=0.5, workers=2))
        until(lambda: seat.crawled("nightly") >= 4, "the first crawls")

        lost = seat.worker(0, run)
        os.kill(lost, signal.SIGKILL)

        assert run.exit_code() == 0
        assert f"worker 0 (pid {lost}) was lost (signal 9); started again\n" in run.stdout
        seat.assert_nothing_is_left()
        assert keys_of(seat.items("nightly")) == two_items_each(24)

    def test_of_postgresql(self, own_seat: Seat) -> None:
        run = own_seat.start(*noop_run(own_seat, users=24, duration_s=0.5))
        until(lambda: own_seat.crawled("nightly") >= 4, "the first crawls")

        os.kill(own_seat.postmaster(), signal.SIGKILL)

        assert run.exit_code() == 0, run.said
        assert "PostgreSQL was killed; starting it again" in run.stdout
        own_seat.assert_nothing_is_left()
        assert keys_of(own_seat.items("nightly")) == two_items_each(24)

    def test_of_a_database_that_is_not_ours(self, seat: Seat, open_dir: Path) -> None:
        """Nobody here can start it again: the run says so and waits."""
        with EmbeddedPostgres(open_dir / "theirs", settings={"fsync": "off"}) as theirs:
            migrate(theirs.url)
            seat.environment["CRAWLFLEET_DATABASE_URL"] = theirs.url
            run = seat.start(*noop_run(seat, users=24, duration_s=0.5))
            until(lambda: seat.crawled("nightly") >= 4, "the first crawls")

            theirs.stop()
            run.wait_for("the database does not answer, waiting for it: ")
            theirs.attach_or_start()

            assert run.exit_code() == 0
            assert keys_of(seat.items("nightly")) == two_items_each(24)

    def test_of_the_shop(self, seat: Seat) -> None:
        """Nothing can be crawled any more: the run says so and comes to its end."""
        documents = shop_documents(free_port(), requestsPerSecond=10, budgets={"retry": 1})
        run = seat.start("run", "--shops", "-f", manifest(seat, *documents))
        until(lambda: seat.crawled("local") >= 1, "the first crawl")

        shop = next(pid for pid, text in seat.processes().items() if " shops " in text)
        os.kill(shop, signal.SIGKILL)

        assert run.exit_code() == 3
        assert "the stand-in shop was ended by somebody" in run.stdout
        assert re.search(r"cafe24: \d+ retry, ", run.stdout)
        seat.assert_nothing_is_left()


class TestTwoRuns:
    def test_they_share_the_server_of_one_state_folder(self, own_seat: Seat) -> None:
        """The second outlives the first, which started the server: it does not even notice."""
        first = own_seat.start(*noop_run(own_seat, users=8, duration_s=6, name="first"))
        until(lambda: own_seat.crawled("first") >= 1, "the first crawls")
        second = own_seat.start(*noop_run(own_seat, users=24, duration_s=1.5, name="second"))

        assert first.exit_code() == 0, first.said
        assert second.exit_code() == 0, second.said
        assert "PostgreSQL was killed" not in second.said
        own_seat.assert_nothing_is_left()
        assert keys_of(own_seat.items("second")) == two_items_each(24)

    def test_a_command_that_started_the_server_leaves_it_to_a_run(self, own_seat: Seat) -> None:
        """An export into a pager that is closed in the middle of a run."""
        own_seat.ok(*noop_run(own_seat, users=4, item_bytes=20_000, items=300, name="first"))
        export = own_seat.popen("results", "first")
        assert export.stdout
        with export.stdout as pager:
            assert pager.readline().startswith(b"{")
            run = own_seat.start(*noop_run(own_seat, users=24, duration_s=0.5, name="second"))
            until(lambda: own_seat.crawled("second") >= 4, "the first crawls")
        export.wait()

        assert run.exit_code() == 0, run.said
        assert "PostgreSQL was killed" not in run.said
        own_seat.assert_nothing_is_left()

    def test_of_one_batch_they_help_each_other(self, seat: Seat) -> None:
        words = noop_run(seat, users=24, duration_s=0.3)
        runs = [seat.start(*words), seat.start(*words)]

        assert [run.exit_code() for run in runs] == [0, 0]
        assert keys_of(seat.items("nightly")) == two_items_each(24)
        assert seat.crawled("nightly") == 24

    def test_with_one_shop_get_one_clear_error(self, seat: Seat) -> None:
        with ExitStack() as taken:
            port = free_port()
            shop = seat.start("shops", "--only", "cafe24", "--cafe24-port", str(port), "--users", "0")
            taken.callback(shop.process.terminate)
            shop.wait_for("stand-in shop")

            done = seat.do("run", "--shops", "-f", manifest(seat, *shop_documents(port)))

        assert done.returncode == 1
        assert f"the stand-in shop did not start: cannot listen on port {port}" in done.stderr
