"""Children that die with their parent: the small program between `spawn` and the command."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Watch, descendants

from crawlfleet.child import spawn

_PARENT = """
import signal, sys
from crawlfleet.child import spawn
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = spawn(["/bin/sh", "-c", "echo ready; exec sleep 600"], death_signal=signal.SIGTERM)
child.wait()
"""


def output_of(child: subprocess.Popen[bytes]) -> str:
    return child.communicate()[0].decode().strip()


def test_a_child_gets_its_signal_when_its_parent_is_killed() -> None:
    """Also if the parent ignored that signal: a child inherits this."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline() == "ready\n"
    watch = Watch(*descendants(parent.pid))

    parent.kill()

    assert not watch.survivors()
    parent.communicate()


def test_a_child_whose_parent_died_before_it_asked_ends_by_itself(tmp_path: Path) -> None:
    """The wrapper is told who its parent was: here somebody else."""
    child = Path(spawn.__code__.co_filename)
    command = [
        sys.executable,
        str(child),
        "1",
        str(int(signal.SIGTERM)),
        "",
        "/bin/touch",
        str(tmp_path / "ran"),
    ]

    assert subprocess.run(command, check=False).returncode == -signal.SIGTERM
    assert not (tmp_path / "ran").exists()


def test_a_child_has_a_session_of_its_own() -> None:
    child = spawn(
        ["/bin/sh", "-c", "cut -d' ' -f6 /proc/$$/stat"], death_signal=signal.SIGKILL, stdout=subprocess.PIPE
    )

    assert int(output_of(child)) == child.pid


def test_the_environment_of_a_child_is_the_one_given() -> None:
    child = spawn(
        ["/usr/bin/env"], death_signal=signal.SIGKILL, env={"WORKER_ID": "3"}, stdout=subprocess.PIPE
    )

    output = output_of(child)
    assert "WORKER_ID=3" in output
    assert "PATH=" not in output


def test_a_command_that_is_not_there_is_named() -> None:
    child = spawn(["/nowhere/crawl"], death_signal=signal.SIGKILL, stdout=subprocess.PIPE)

    assert output_of(child) == "cannot start /nowhere/crawl: [Errno 2] No such file or directory"
    assert child.returncode == 127


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another account")
def test_a_child_of_root_keeps_nothing_of_root() -> None:
    nobody = pwd.getpwnam("nobody")
    child = spawn(
        ["/bin/sh", "-c", "id -u; id -g; id -G; pwd"],
        death_signal=signal.SIGKILL,
        user="nobody",
        stdout=subprocess.PIPE,
    )

    assert output_of(child).split() == [str(nobody.pw_uid), *[str(nobody.pw_gid)] * 2, "/"]
