"""Celery on Redis, as durable as it gets without a result backend: late acks, lost workers' tasks put back.

Its own redis-server without persistence (the fastest it can be) on a socket in a temporary folder. The queue is
filled first, then two worker instances with one process each start; that arrangement was its fastest.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from machine import Cpu, Pace
from redis import Redis
from redis.exceptions import ConnectionError as RedisGone
from rig import await_that

from crawlfleet.child import spawn

TASKS, INSTANCES = 20_000, 2
QUEUE = "celery"
_FILL = "import celery_noop\nwith celery_noop.app.producer_or_acquire() as p:\n    for _ in range({}): celery_noop.noop.apply_async(producer=p)"


def celery_pace(folder: Path) -> Pace:
    """No-op tasks a second from the first acknowledgement to the last."""
    socket = folder / "redis.sock"
    environment = {**os.environ, "CELERY_BROKER_URL": f"redis+socket://{socket}"}
    with _redis(folder, socket) as redis:
        subprocess.run(
            [sys.executable, "-c", _FILL.format(TASKS)],
            cwd=Path(__file__).parent,
            env=environment,
            check=True,
        )
        with _instances(folder, environment):
            await_that(lambda: _open_tasks(redis) < TASKS, 60, "Celery's first task")
            before, first = Cpu.now(), _open_tasks(redis)
            await_that(lambda: _open_tasks(redis) == 0, 120, "Celery's last task")
            after = Cpu.now()
    return Pace(first / (after.at_s - before.at_s), after.ours_since_s(before) * 1e6 / first)


def _open_tasks(redis: Redis) -> int:
    """Queued, or with a worker and not acknowledged; read in one step, since tasks go from one to the other."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.llen(QUEUE)
        pipe.hlen("unacked")
        return sum(cast(list[int], pipe.execute()))


@contextmanager
def _redis(folder: Path, socket: Path) -> Iterator[Redis]:
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError(
            "redis-server is not installed: `apt-get install redis-server`, or leave out `throughput`"
        )
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        server = spawn(command, death_signal=signal.SIGKILL, stdout=log)
    try:
        with Redis(unix_socket_path=str(socket)) as redis:
            await_that(lambda: _answers(redis), 30, "redis-server")
            yield redis
    finally:
        server.kill()
        server.wait()


def _answers(redis: Redis) -> bool:
    with suppress(RedisGone):
        return bool(redis.ping())
    return False


@contextmanager
def _instances(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Two Celery workers; a soft end first, since an instance's pool process is not our child."""
    worker = [
        sys.executable,
        "-m",
        "celery",
        "--workdir",
        str(Path(__file__).parent),
        "-A",
        "celery_noop",
        "worker",
    ]
    worker += ["--pool", "prefork", "--concurrency", "1", "--loglevel", "warning"]
    instances = []
    try:
        for i in range(INSTANCES):
            with (folder / f"celery-{i}.log").open("wb") as log:
                command = [*worker, "--hostname", f"bench{i}@localhost"]
                instances.append(spawn(command, death_signal=signal.SIGTERM, env=environment, stdout=log))
        yield
    finally:
        for instance in instances:
            instance.terminate()
        for instance in instances:
            instance.wait(60)
