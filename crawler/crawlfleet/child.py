"""Child processes that die with their parent, whatever kills it. Used for PostgreSQL and for local workers.

`spawn` runs this very file as a tiny program: it drops root, asks the kernel for a signal at its parent's
death (PR_SET_PDEATHSIG) and becomes the command. It imports the standard library alone and is complete
before root is dropped, so the unprivileged user need not be able to read our virtual environment. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1


def spawn(
    args: Sequence[str],
    *,
    death_signal: signal.Signals,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own (a terminal's Ctrl-C does not reach it).

    It gets `death_signal` when the *thread* that calls this ends, not only the process: call it from the
    main thread or from one that lives as long. With `user` (only root may) it runs as that account, without
    further groups, in `/`. `args[0]` is an absolute path. stderr follows `stdout` unless that is None. A
    command that cannot be started shows as exit code 127 with one line on stderr.
    """
    wrapper = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), user or ""]
    return subprocess.Popen(
        [*wrapper, *args],
        cwd="/" if user else None,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=None if stdout is None else subprocess.STDOUT,
        start_new_session=True,
        pass_fds=pass_fds,
    )


def _drop_root(name: str) -> None:
    account = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _die_with_parent(parent_pid: int, death_signal: int) -> None:
    """After `_drop_root`: a change of credentials clears the request."""
    if death_signal != signal.SIGKILL:  # inherited as ignored or blocked, it would be lost
        signal.signal(death_signal, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [death_signal])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it died before the kernel knew of our wish
        os.kill(os.getpid(), death_signal)


def _become(parent_pid: int, death_signal: int, user: str, args: list[str]) -> None:
    try:
        if user:
            _drop_root(user)
        _die_with_parent(parent_pid, death_signal)
        os.execv(args[0], args)  # noqa: S606  the point of this program: no shell, no second process
    except (OSError, KeyError) as exc:
        print(f"cannot start {args[0]}: {exc}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
