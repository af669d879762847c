"""The embedded PostgreSQL of `crawlfleet run`: the system's binaries, a private socket, its users' lifetime.

The lock is the heart of it. `STATE/lock` is flocked through one open file that the server, its backends and its
keeper inherit, so the kernel holds it until the last of them is gone, whoever was killed and however. Who gets
the lock may touch the data folder and start a server; who does not takes a seat at the server that is there.
It lives until the last seat is given back (`keeper`). It sets up no schema and knows no tables: `store` does.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

import psycopg
from psycopg import pq

from crawlfleet.child import spawn
from crawlfleet.errors import CrawlfleetError, DatabaseUnavailable
from crawlfleet.local.keeper import leave, start_keeper, take_seat
from crawlfleet.local.restarts import tail
from crawlfleet.sockets import is_open

START_S = 60.0
RECOVERY_S = 600.0
"""Replaying the log after a crash may take longer than a start; giving up would only begin it again."""
_POLL_S = 0.02
_LOW_DISK_MB = 64  # a new data folder and its first log files take about as much
_WAL_FILE_MB = 16
_LOG_LINES = 5

_SUPERUSER = "crawlfleet"
_DATABASE = "crawlfleet"
_PORT = 5432  # only a part of the socket's file name
_SOCKET_PATH_MAX_BYTES = 100  # the kernel takes 107

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedPostgres:
    """One PostgreSQL server under `state_dir`, shared by every crawlfleet process that names this folder.

    `settings` are server settings that win over ours. As a context manager it starts (or finds) the server
    and leaves it; the last one to leave ends it.
    """

    def __init__(self, state_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._state_dir = state_dir.resolve()
        self._settings = _SETTINGS | dict(settings or {})
        self._data_dir = self._state_dir / "postgres"
        self._log = self._state_dir / "postgres.log"
        self._user = _server_account()
        self._socket_dir = _socket_dir(self._state_dir)
        self._door = self._socket_dir / "keeper"
        self._seat: socket.socket | None = None
        self._keeper: subprocess.Popen[bytes] | None = None  # if it was us who started it

    @property
    def exists(self) -> bool:
        """Whether there is a database to start."""
        return self._data_dir.exists()

    @property
    def url(self) -> str:
        """The database's URL; valid while a server runs."""
        return self._url_of(_DATABASE)

    def _url_of(self, database: str) -> str:
        return f"postgresql:///{database}?host={quote(str(self._socket_dir))}&port={_PORT}&user={_SUPERUSER}"

    def __enter__(self) -> Self:
        self.attach_or_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def attach_or_start(self) -> str:
        """Use the server that another process runs here, or else start ours; returns the URL.

        Waits for the remains of a killed server to end. Raises CrawlfleetError if there are no binaries, the
        folder cannot be used or the server does not start.
        """
        self._prepare_state_dir()
        began_s = time.monotonic()
        try:
            while (lock := self._try_lock()) is None:
                if self._is_seated() and self._has_database():
                    return self.url
                if time.monotonic() - began_s > _patience_s(self._ping()):
                    raise self._failed("of another process, which holds the lock beside it, does not answer")
                time.sleep(_POLL_S)
            self.stop()  # a seat at a server that did not come up
            with lock:
                self._start(lock)
        except BaseException:
            self.stop()
            raise
        return self.url

    def _is_seated(self) -> bool:
        """Whether we have a seat at a living server, or got one just now."""
        if self._seat is None or not is_open(self._seat):
            self.stop()
            self._seat = take_seat(self._door)
        return self._seat is not None

    def poll(self) -> bool:
        """Whether the server still runs. False calls for `restart`."""
        return self._seat is not None and is_open(self._seat) and self._ping() is not pq.Ping.NO_RESPONSE

    def full_disk(self) -> str:
        """What to tell if the disk has no room for one more log file of the server; empty if it has."""
        free_mb = shutil.disk_usage(self._state_dir).free // 2**20
        return f"The disk of {self._state_dir} is full: {free_mb} MB free." if free_mb < _WAL_FILE_MB else ""

    def restart(self) -> str:
        """After the server was killed: crash recovery, once its last backend is gone. Returns the URL."""
        self.stop()
        return self.attach_or_start()

    def stop(self) -> None:
        """Leave the server to its other users; the last one waits until it has ended. Safe to repeat."""
        if self._seat is not None:
            seat, self._seat = self._seat, None
            has_ended, keeper, self._keeper = leave(seat), self._keeper, None
            if keeper is not None and has_ended:
                keeper.wait()
            elif keeper is not None:
                keeper.returncode = 0  # it outlives us: no child that somebody forgot to wait for

    def _prepare_state_dir(self) -> None:
        try:
            _make_folder(self._state_dir, mode=0o711 if self._user else 0o700)
        except OSError as exc:
            raise self._unusable(exc) from exc
        owner = self._state_dir.stat().st_uid
        if owner != os.geteuid():
            raise CrawlfleetError(
                f"the state folder {self._state_dir} belongs to {_account_name(owner)}, not to"
                f" {_account_name(os.geteuid())}; run as its owner or choose another state folder"
            )
        if self._user:
            _check_reachable(self._state_dir, self._user)

    def _unusable(self, exc: OSError) -> CrawlfleetError:
        return CrawlfleetError(
            f"cannot use the state folder {self._state_dir}: {exc.strerror} ({exc.filename});"
            " make room, make it writable or choose another state folder"
        )

    def _open(self, name: str) -> IO[bytes]:
        try:
            return (self._state_dir / name).open("ab")
        except OSError as exc:
            raise self._unusable(exc) from exc

    def _try_lock(self) -> IO[bytes] | None:
        file = self._open("lock")
        if _flock(file, fcntl.LOCK_EX):
            return file
        file.close()
        return None

    def _start(self, lock: IO[bytes]) -> None:
        try:
            binaries = find_binaries(_major_version(self._data_dir))
            if not self._data_dir.exists():
                self._initialise(binaries, lock)
            self._forget_foreign_pid()
            self._claim_socket_dir()
            self._keeper = self._launch(binaries, lock)
        except OSError as exc:
            raise self._unusable(exc) from exc
        self._wait_until_ready(self._keeper)
        self._create_database()

    def _initialise(self, binaries: Path, lock: IO[bytes]) -> None:
        """initdb beside the final place, then rename: a folder named `postgres` is always a complete one."""
        fresh = self._data_dir.with_suffix(".new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        self._give_to_server(fresh)
        initdb = [str(binaries / "initdb"), "-D", str(fresh), "-U", _SUPERUSER]
        initdb += ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        with self._log.open("wb") as log:
            made = spawn(
                initdb, death_signal=signal.SIGKILL, user=self._user, stdout=log, pass_fds=[lock.fileno()]
            ).wait()
        if made != 0:
            shutil.rmtree(fresh)
            raise self._failed("could not be initialised")
        fresh.rename(self._data_dir)

    def _launch(self, binaries: Path, lock: IO[bytes]) -> subprocess.Popen[bytes]:
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        postgres = [str(binaries / "postgres"), "-D", str(self._data_dir), "-k", str(self._socket_dir)]
        postgres += [f"--{name}={value}" for name, value in self._settings.items()]
        door = socket.socket(socket.AF_UNIX)
        door.bind(os.fspath(self._door))
        door.listen()
        keeper, self._seat = start_keeper(postgres, door, user=self._user, log=self._log, lock=lock.fileno())
        return keeper

    def _wait_until_ready(self, keeper: subprocess.Popen[bytes]) -> None:
        began_s = time.monotonic()
        while (answer := self._ping()) is not pq.Ping.OK:
            if keeper.poll() is not None:
                raise self._failed("did not start")
            if time.monotonic() - began_s > _patience_s(answer):
                raise self._failed(f"was not ready after {_patience_s(answer):.0f} s")
            time.sleep(_POLL_S)

    def _ping(self) -> pq.Ping:
        url = f"{self._url_of('postgres')}&connect_timeout=2"
        return pq.Ping(pq.PGconn.ping(url.encode()))

    def _has_database(self) -> bool:
        """A ping is not enough for a newcomer: who started the server may have died before it created the database."""
        try:
            self._create_database()
        except DatabaseUnavailable:
            return False
        return True

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self._url_of("postgres"), autocommit=True, connect_timeout=5) as conn:
                known = conn.execute("select from pg_database where datname = %s", (_DATABASE,)).fetchone()
                if known is None:
                    conn.execute(f"create database {_DATABASE}")
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            pass  # another user was faster
        except psycopg.Error as exc:
            raise self._failed(f"could not create the database {_DATABASE} ({exc})") from exc

    def _failed(self, what: str) -> DatabaseUnavailable:
        said = (tail(self._log, _LOG_LINES) if self._log.exists() else "") or "(empty)"
        free_mb = shutil.disk_usage(self._state_dir).free // 2**20
        cause = f" The disk is full: {free_mb} MB free." if free_mb < _LOW_DISK_MB else ""
        return DatabaseUnavailable(
            f"the embedded PostgreSQL in {self._data_dir} {what}.{cause} The end of its log {self._log}:\n{said}"
        )

    def _forget_foreign_pid(self) -> None:
        """We hold the lock, so no server of ours lives. A postmaster.pid whose number belongs to another
        program by now (or to a zombie nobody reaps) would still keep PostgreSQL from starting."""
        pid_file = self._data_dir / "postmaster.pid"
        with suppress(FileNotFoundError, IndexError, ProcessLookupError):
            pid = pid_file.read_text().split()[0]
            program = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")[0]
            if os.path.basename(program) != b"postgres":
                pid_file.unlink()

    def _claim_socket_dir(self) -> None:
        """Make the private folder, or refuse one that somebody else put there.

        Never follows a link and removes only these names: the folder may lie in a public `/tmp`.
        """
        with suppress(FileExistsError):
            self._socket_dir.mkdir(mode=0o700)
        found = self._socket_dir.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not private or found.st_uid not in (os.geteuid(), _uid(self._user)):
            raise CrawlfleetError(
                f"{self._socket_dir} is not our private folder (it belongs to {_account_name(found.st_uid)});"
                " remove it, or choose a shorter state folder"
            )
        for left in (f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock", self._door.name):  # by a killed server
            (self._socket_dir / left).unlink(missing_ok=True)
        self._give_to_server(self._socket_dir)
        if self._user:
            _check_reachable(self._socket_dir.parent, self._user)

    def _give_to_server(self, folder: Path) -> None:
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(folder, account.pw_uid, account.pw_gid, follow_symlinks=False)


def find_binaries(major: str | None = None, *, installed: Path = Path("/usr/lib/postgresql")) -> Path:
    """The folder with `initdb` and `postgres`: of the `major` version if it is there, else of the newest.

    Looks under `installed` as Debian lays it out, then where `pg_config` points. CrawlfleetError if there is none.
    """
    found = {folder.parent.name: folder for folder in installed.glob("*/bin") if (folder / "initdb").exists()}
    if major in found:
        return found[major]
    if found:
        return found[max(found, key=lambda version: [int(part) for part in version.split(".")])]
    if pg_config := shutil.which("pg_config"):
        folder = Path(
            subprocess.run(
                [pg_config, "--bindir"], capture_output=True, text=True, check=False
            ).stdout.strip()
        )
        if (folder / "initdb").exists():
            return folder
    raise CrawlfleetError(
        "no PostgreSQL server is installed: `apt-get install postgresql`, or give `--database-url` of one that runs"
    )


def _major_version(data_dir: Path) -> str | None:
    with suppress(FileNotFoundError):
        return (data_dir / "PG_VERSION").read_text().strip()
    return None


def _server_account() -> str | None:
    """The account to drop to, since PostgreSQL refuses root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    known = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _socket_dir(state_dir: Path) -> Path:
    """Beside the data, or a folder under the temporary one for a path that a socket or libpq cannot take."""
    beside = state_dir / "run"
    fits = len(os.fsencode(beside / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_MAX_BYTES
    if fits and "," not in str(beside):  # libpq reads a comma as a list of hosts
        return beside
    digest = sha256(os.fsencode(state_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()).resolve() / f"crawlfleet-{digest}"


def _flock(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _patience_s(answer: pq.Ping) -> float:
    return RECOVERY_S if answer is pq.Ping.REJECT else START_S


def _make_folder(folder: Path, mode: int) -> None:
    """Like mkdir -p; the mode is that of the last folder, whatever the umask, and only if it is new."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        folder.chmod(mode)


def _check_reachable(folder: Path, user: str) -> None:
    """CrawlfleetError naming the first parent that `user` may not enter."""
    account = pwd.getpwnam(user)
    for step in (*reversed(folder.parents), folder):
        found = step.stat()
        owned_bit = (
            0o100 if found.st_uid == account.pw_uid else 0o010 if found.st_gid == account.pw_gid else 0o001
        )
        if not found.st_mode & owned_bit:
            raise CrawlfleetError(
                f"PostgreSQL runs as {user}, not as root, and {user} may not enter {step};"
                f" `chmod o+x {step}` or choose another state folder"
            )


def _uid(user: str | None) -> int:
    return pwd.getpwnam(user).pw_uid if user else os.geteuid()


def _account_name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"
