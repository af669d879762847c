"""`crawlfleet plan`: the batch waits in the database for workers that somebody else starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import (
    Seat,
    account_line,
    accounts_file,
    batch,
    keys_of,
    manifest,
    seat_in,
    source,
    two_items_each,
)

USERS = 5


@pytest.fixture
def seat(open_dir: Path, database_url: str) -> Iterator[Seat]:
    with seat_in(open_dir, database_url) as made:
        made.environment["CRAWLFLEET_KEYS_FILE"] = str(open_dir / "keys")
        (open_dir / "keys").write_text(made.ok("keys", "new"))
        yield made


def words(seat: Seat, **spec: Any) -> list[str | Path]:
    file = manifest(seat, source(options={"items": 2}), batch(workers=2, **spec))
    lines = map(account_line, range(1, USERS + 1))
    return ["plan", "-f", file, "--accounts", accounts_file(seat, *lines)]


def work(seat: Seat) -> int:
    """Run a worker of the batch to its end; its exit code."""
    seat.environment |= {"CRAWLFLEET_BATCH": "nightly", "WORKER_ID": "1", "CRAWLFLEET_METRICS_PORT": "0"}
    return seat.do("worker").returncode


def test_a_worker_from_elsewhere_crawls_what_was_planned(seat: Seat) -> None:
    assert "planned: nightly, tasks: 5, workers: WORKER_ID 0 to 1" in seat.ok(*words(seat))

    assert work(seat) == 0
    assert keys_of(seat.items("nightly")) == two_items_each(USERS)


def test_planning_it_again_changes_nothing(seat: Seat) -> None:
    assert seat.ok(*words(seat)) == seat.ok(*words(seat))

    assert work(seat) == 0
    assert "batch nightly is closed already; to crawl again, rename it" in seat.ok(*words(seat))


def test_an_edited_file_is_refused_while_the_batch_before_it_is_open(seat: Seat) -> None:
    seat.ok(*words(seat))
    edited = words(seat, users={"ids": [1]})

    done = seat.do(*edited)
    assert done.returncode == 2
    assert "a batch nightly of another spec is still open" in done.stderr
    assert done.stdout == ""  # nothing is declared either

    seat.ok("cancel", "nightly")
    assert "planned: nightly, tasks: 1," in seat.ok(*edited)
