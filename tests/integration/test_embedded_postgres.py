"""The embedded PostgreSQL: who starts it, who may use it, and that nothing of it outlives its last user."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from builders import together
from processes import Watch, descendants

from crawlfleet.child import spawn
from crawlfleet.errors import CrawlfleetError
from crawlfleet.local.postgres import EmbeddedPostgres, find_binaries

_OWNER = """
import sys
from pathlib import Path
from crawlfleet.local.postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state_dir(open_dir: Path) -> Path:
    return open_dir / "state"


def start_owner(state_dir: Path) -> subprocess.Popen[str]:
    """Another process that starts a server and uses it until its stdin is closed."""
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    assert owner.stdout.readline().startswith("postgresql:///crawlfleet?")
    return owner


def postmaster_pid(state_dir: Path) -> int:
    return int((state_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def parent(pid: int) -> int:
    """Of the postmaster it is the keeper."""
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def kill_server(state_dir: Path) -> None:
    pid = postmaster_pid(state_dir)
    watch = Watch(pid)
    os.kill(pid, signal.SIGKILL)
    assert not watch.survivors()


def answer(url: str, question: str = "select 42") -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(question.encode()).fetchone()
    assert row
    return row[0]


def test_a_started_server_answers_and_is_not_reachable_by_tcp(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir) as server:
        assert answer(server.url) == 42
        assert answer(server.url, "show listen_addresses") == ""
        assert answer(server.url, "show server_encoding") == "UTF8"


def test_only_its_owner_may_enter_the_socket_folder(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir):
        assert (state_dir / "run").stat().st_mode & 0o777 == 0o700


def test_a_given_setting_wins(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir, settings={"max_connections": "7"}) as server:
        assert answer(server.url, "show max_connections") == "7"
        assert answer(server.url, "show fsync") == "on"


def test_committed_rows_survive_a_killed_server(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir) as server:
        with psycopg.connect(server.url) as conn:
            conn.execute("create table kept as select 7 as number")
        kill_server(state_dir)

        assert not server.poll()
        server.restart()

        assert server.poll()
        assert answer(server.url, "select number from kept") == 7


def test_a_restart_waits_until_the_last_backend_of_the_killed_server_is_gone(state_dir: Path) -> None:
    """A backend in the middle of a computation does not notice at once that its server is gone."""
    with EmbeddedPostgres(state_dir) as server, psycopg.connect(server.url, autocommit=True) as conn:
        backend = Watch(conn.info.backend_pid)
        busy = Thread(target=compute_for_a_second, args=(conn,))
        busy.start()
        wait_until_active(server.url, conn.info.backend_pid)
        kill_server(state_dir)

        server.restart()

        assert not backend.survivors(timeout_s=0)
        busy.join()


def compute_for_a_second(conn: psycopg.Connection) -> None:
    with suppress(psycopg.OperationalError):
        conn.execute("do $$ begin for i in 1 .. 30000000 loop end loop; end $$")


def wait_until_active(url: str, pid: int) -> None:
    while answer(url, f"select count(*) from pg_stat_activity where pid = {pid} and query like 'do %'") == 0:
        pass


def test_nothing_is_left_after_the_owner_is_killed(state_dir: Path) -> None:
    owner = start_owner(state_dir)
    server = descendants(owner.pid)
    assert postmaster_pid(state_dir) in server
    watch = Watch(*server)

    owner.kill()

    owner.communicate()
    assert not watch.survivors()


def test_nothing_is_left_after_a_normal_exit(state_dir: Path) -> None:
    owner = start_owner(state_dir)
    watch = Watch(*descendants(owner.pid))

    owner.communicate(input="")

    assert owner.returncode == 0
    assert not watch.survivors(timeout_s=0)
    assert not (state_dir / "postgres" / "postmaster.pid").exists()


def test_the_next_owner_takes_over_at_once_after_the_first_was_killed(state_dir: Path) -> None:
    owner = start_owner(state_dir)
    owner.kill()
    owner.communicate()

    with EmbeddedPostgres(state_dir) as server:
        assert answer(server.url) == 42


def test_a_second_process_uses_the_running_server_and_leaves_it_running(state_dir: Path) -> None:
    owner = start_owner(state_dir)
    pid = postmaster_pid(state_dir)

    with EmbeddedPostgres(state_dir) as attached:
        assert answer(attached.url) == 42
        assert attached.poll()

    assert postmaster_pid(state_dir) == pid
    assert answer(attached.url) == 42
    owner.communicate(input="")


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_first_process_leaves_the_server_to_the_others(state_dir: Path, how: str) -> None:
    owner = start_owner(state_dir)
    with EmbeddedPostgres(state_dir) as attached, psycopg.connect(attached.url) as conn:
        watch = Watch(postmaster_pid(state_dir), parent(postmaster_pid(state_dir)))
        if how == "kill":
            owner.kill()
        owner.communicate(input="")

        assert attached.poll()
        assert conn.execute("select 42").fetchone() == (42,)
        conn.close()

    assert not watch.survivors()


def test_who_attaches_after_the_first_was_killed_too_early_finds_a_database(state_dir: Path) -> None:
    owner = start_owner(state_dir)
    with EmbeddedPostgres(state_dir) as server:
        with psycopg.connect(server.url.replace("///crawlfleet", "///postgres"), autocommit=True) as conn:
            conn.execute("drop database crawlfleet")

        with EmbeddedPostgres(state_dir) as late:
            assert answer(late.url) == 42
    owner.communicate(input="")


def test_many_that_come_at_once_share_one_server(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir):
        pass
    servers = [EmbeddedPostgres(state_dir) for _ in range(6)]

    assert set(together(*[server.attach_or_start for server in servers])) == {servers[0].url}

    watch = Watch(postmaster_pid(state_dir))
    for server in servers:
        server.stop()
    assert not watch.survivors()


def test_who_attaches_while_the_last_one_leaves_gets_a_server(state_dir: Path) -> None:
    """Either the old one or a new one, never an error."""
    for _ in range(5):
        owner = start_owner(state_dir)
        assert owner.stdin
        owner.stdin.close()
        with EmbeddedPostgres(state_dir) as late:
            assert answer(late.url) == 42
        owner.wait()
        assert owner.stdout
        owner.stdout.close()


def test_a_killed_keeper_takes_the_server_with_it_and_any_user_starts_another(state_dir: Path) -> None:
    owner = start_owner(state_dir)
    watch = Watch(*descendants(owner.pid))
    with EmbeddedPostgres(state_dir) as attached:
        os.kill(parent(postmaster_pid(state_dir)), signal.SIGKILL)
        assert not watch.survivors()
        assert not attached.poll()

        attached.restart()

        assert answer(attached.url) == 42
    owner.communicate(input="")


def test_a_ctrl_c_at_the_terminal_does_not_reach_the_server(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir):
        assert os.getsid(postmaster_pid(state_dir)) != os.getsid(0)


@pytest.mark.parametrize(
    "name", ["a" * 90 + "/" + "b" * 90, "with,comma", "with space"], ids=["long", "comma", "space"]
)
def test_a_state_folder_may_have_any_path(open_dir: Path, name: str) -> None:
    """Sockets have short paths, and libpq reads a comma as a list of hosts."""
    with EmbeddedPostgres(open_dir / name) as server:
        assert answer(server.url) == 42


def test_a_socket_folder_open_to_others_is_refused(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have put it into the public temporary folder before us."""
    monkeypatch.setattr("tempfile.tempdir", str(open_dir))
    server = EmbeddedPostgres(open_dir / ("a" * 120))
    with server:
        planted = Path(answer(server.url, "show unix_socket_directories"))  # type: ignore[arg-type]
    planted.mkdir()
    planted.chmod(0o777)

    with pytest.raises(CrawlfleetError, match="is not our private folder"):
        server.attach_or_start()


def test_a_pid_file_that_names_another_program_by_now_is_no_obstacle(state_dir: Path) -> None:
    with EmbeddedPostgres(state_dir) as server:
        kill_server(state_dir)
        pid_file = state_dir / "postgres" / "postmaster.pid"
        account = pwd.getpwuid(
            pid_file.stat().st_uid
        ).pw_name  # PostgreSQL heeds its own account's processes alone
        other = spawn(
            ["/bin/sleep", "600"], death_signal=signal.SIGKILL, user=account if os.geteuid() == 0 else None
        )
        _, *rest = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{other.pid}\n", *rest]))

        try:
            server.restart()
            assert answer(server.url) == 42
        finally:
            other.kill()
            other.wait()


def test_an_interrupted_initialisation_is_begun_again(state_dir: Path) -> None:
    (state_dir / "postgres.new").mkdir(parents=True)
    (state_dir / "postgres.new" / "PG_VERSION").write_text("15\n")

    with EmbeddedPostgres(state_dir) as server:
        assert answer(server.url) == 42


def test_a_server_that_does_not_start_shows_the_end_of_its_log(state_dir: Path) -> None:
    with pytest.raises(CrawlfleetError, match=r'did not start.*\n.*"shared_buffers": "a lot"'):
        EmbeddedPostgres(state_dir, settings={"shared_buffers": "a lot"}).attach_or_start()


def test_a_failed_start_frees_the_folder(state_dir: Path) -> None:
    with pytest.raises(CrawlfleetError):
        EmbeddedPostgres(state_dir, settings={"shared_buffers": "a lot"}).attach_or_start()

    with EmbeddedPostgres(state_dir) as server:
        assert answer(server.url) == 42


def test_missing_binaries_say_what_to_install(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(open_dir))

    with pytest.raises(CrawlfleetError, match="`apt-get install postgresql`, or give `--database-url`"):
        find_binaries(installed=open_dir)


def test_the_newest_binaries_are_taken_unless_the_data_needs_others(open_dir: Path) -> None:
    for version in ("9.6", "15", "17"):
        (open_dir / version / "bin").mkdir(parents=True)
        (open_dir / version / "bin" / "initdb").touch()
    (open_dir / "18" / "bin").mkdir(parents=True)  # the client alone

    assert find_binaries(installed=open_dir) == open_dir / "17" / "bin"
    assert find_binaries("15", installed=open_dir) == open_dir / "15" / "bin"


def test_a_state_folder_that_is_a_file_is_refused(open_dir: Path) -> None:
    (open_dir / "file").touch()

    with pytest.raises(CrawlfleetError, match=r"cannot use the state folder .*/file: File exists"):
        EmbeddedPostgres(open_dir / "file").attach_or_start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_folder_of_somebody_else_is_refused(state_dir: Path) -> None:
    state_dir.mkdir()
    os.chown(state_dir, 65534, -1)

    with pytest.raises(CrawlfleetError, match="belongs to nobody, not to root"):
        EmbeddedPostgres(state_dir).attach_or_start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another account")
def test_a_parent_that_the_server_may_not_enter_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with pytest.raises(CrawlfleetError, match=r"may not enter .*chmod o\+x"):
        EmbeddedPostgres(tmp_path / "state").attach_or_start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_folder_that_cannot_be_written_is_refused(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o500)

    with pytest.raises(CrawlfleetError, match=r"cannot use the state folder .*: Permission denied"):
        EmbeddedPostgres(state_dir).attach_or_start()


def test_each_test_gets_a_fresh_migrated_database(database_url: str) -> None:
    assert answer(database_url, "select count(*) from schema_migration") != 0


def test_pgbouncer_reaches_the_same_database(database_url: str, pgbouncer_url: str) -> None:
    assert answer(pgbouncer_url, "select current_database()") == answer(
        database_url, "select current_database()"
    )
