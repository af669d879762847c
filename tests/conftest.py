"""Fixtures shared by all tests: one real PostgreSQL a session, a fresh database a test, a real pgbouncer."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import pq, sql

from crawlfleet.child import spawn
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.store.migrations import migrate

_PGBOUNCER = Path("/usr/sbin/pgbouncer")
_PGBOUNCER_PORT = 6432  # only a part of the socket's file name
_PGBOUNCER_INI = """
[databases]
* = host={server} port=5432 user=crawlfleet

[pgbouncer]
pool_mode = transaction
auth_type = any
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
max_client_conn = 1000
"""
_TEMPLATE = "template_crawlfleet"
_numbers = count(1)


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A temporary folder with a short path that the server's account may enter (`tmp_path` is neither)."""
    yield from _open_dir()


@pytest.fixture(scope="module")
def module_dir() -> Iterator[Path]:
    """The same for all tests of a module."""
    yield from _open_dir()


@pytest.fixture(scope="session")
def _session_dir() -> Iterator[Path]:
    yield from _open_dir()


def _open_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="crawlfleet-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="session")
def postgres(_session_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The session's server. Without fsync: nobody needs its data after a power cut."""
    with EmbeddedPostgres(_session_dir / "state", settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def _template(postgres: EmbeddedPostgres) -> str:
    """A database migrated once, to copy from."""
    _administer(postgres, "create database {}", _TEMPLATE)
    migrate(_url_of(postgres, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, _template: str) -> Iterator[str]:
    """A fresh, migrated database for this test alone."""
    name = f"test_{next(_numbers)}"
    _administer(postgres, "create database {} template {}", name, _template)
    yield _url_of(postgres, name)
    _administer(postgres, "drop database {} with (force)", name)


@pytest.fixture
def pgbouncer_url(database_url: str, _pgbouncer_dir: Path) -> str:
    """The database of `database_url`, through a pgbouncer in transaction mode."""
    name = database_url.removeprefix("postgresql:///").partition("?")[0]
    return f"postgresql:///{name}?host={_pgbouncer_dir}&port={_PGBOUNCER_PORT}&user=crawlfleet"


@pytest.fixture(scope="session")
def _pgbouncer_dir(_session_dir: Path, postgres: EmbeddedPostgres) -> Iterator[Path]:
    """The socket folder of a running pgbouncer."""
    if not _PGBOUNCER.exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("pgbouncer is not installed: apt-get install pgbouncer")
    folder = _session_dir / "pgbouncer"
    folder.mkdir()
    bouncer = _start_pgbouncer(folder, _session_dir / "state" / "run")
    try:
        _await_pgbouncer(bouncer, folder)
        yield folder
    finally:
        bouncer.kill()
        bouncer.wait()


def _start_pgbouncer(folder: Path, server: Path) -> subprocess.Popen[bytes]:
    """It runs as the server's account, since no other may enter the server's socket folder."""
    account = pwd.getpwuid(server.stat().st_uid).pw_name
    ini = folder / "pgbouncer.ini"
    ini.write_text(_PGBOUNCER_INI.format(server=server, folder=folder, port=_PGBOUNCER_PORT))
    shutil.chown(folder, account)
    drop_to = account if os.geteuid() == 0 else None
    with (folder / "log").open("wb") as log:
        return spawn([str(_PGBOUNCER), str(ini)], death_signal=signal.SIGKILL, user=drop_to, stdout=log)


def _await_pgbouncer(bouncer: subprocess.Popen[bytes], folder: Path) -> None:
    url = f"postgresql:///postgres?host={folder}&port={_PGBOUNCER_PORT}&user=crawlfleet"
    deadline_s = time.monotonic() + 30
    while pq.PGconn.ping(url.encode()) != pq.Ping.OK:
        if bouncer.poll() is not None or time.monotonic() > deadline_s:
            pytest.fail(f"pgbouncer did not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.02)


def _url_of(postgres: EmbeddedPostgres, name: str) -> str:
    return postgres.url.replace("///crawlfleet?", f"///{name}?")


def _administer(postgres: EmbeddedPostgres, statement: str, *names: str) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
