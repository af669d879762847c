"""Can Chrome run here at all? Looked at before the first launch, and by `crawlfleet doctor`.

Each check raises ChromeUnusable: what is missing, where, and what to do. What cannot be seen beforehand shows when
Chrome is launched.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crawlfleet import cgroup
from crawlfleet.errors import ChromeUnusable
from crawlfleet.settings import ChromeSettings

SHM = Path("/dev/shm")  # noqa: S108  asked for its size
SHM_MB = 256
"""Renderers share bitmaps there; with a container's usual 64 MB tabs crash."""
MEMORY_MB = 256
"""An idle Chrome takes about as much."""
VERSION_S = 20.0
SANDBOX_S = 5.0
FONTS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
FONT_FILES = (".ttf", ".otf", ".ttc", ".pfb")
UNPRIVILEGED = "nobody"
DEBIAN = Path("/usr/lib/chromium")
"""The programs themselves. Of the wrappers in /usr/bin one adds flags that depend on the machine, and the other stays
in between as a shell, so that its death would leave Chrome alive."""


@dataclass(frozen=True)
class Installation:
    """What to launch, as whom (None: as ourselves), and whether Chrome's sandbox works for that account."""

    chrome: str
    chromedriver: str
    version: str
    account: str | None
    sandbox: bool


def inspect(settings: ChromeSettings) -> Installation:
    """Everything that can be told before a launch. Raises ChromeUnusable."""
    chrome = find_chrome(settings.chrome)
    chromedriver = find_chromedriver(settings.chromedriver)
    version = check_versions(_version(chrome), _version(chromedriver))
    check_shm()
    check_memory(_free_memory_mb())
    check_fonts()
    account = UNPRIVILEGED if os.geteuid() == 0 else None
    return Installation(chrome, chromedriver, version, account, _can_sandbox(account))


def find_chrome(name: str, debian: Path = DEBIAN) -> str:
    """The program of that name or path; no wrapper."""
    found = shutil.which(name, path=debian) or shutil.which(name)
    if found is None:
        raise ChromeUnusable(
            f"there is no program {name} (CRAWLFLEET_CHROME) here; `apt-get install chromium-headless-shell`,"
            " or name another Chrome"
        )
    return os.path.abspath(found)


def find_chromedriver(name: str) -> str:
    """The program of that name or path."""
    found = shutil.which(name)
    if found is None:
        raise ChromeUnusable(
            f"there is no program {name} (CRAWLFLEET_CHROMEDRIVER) here; `apt-get install chromium-driver`,"
            " or name another one of the Chrome's version"
        )
    return os.path.abspath(found)


def check_versions(chrome: str, chromedriver: str) -> str:
    """Chrome's version, if the driver is made for it: both are lines that `--version` says."""
    versions = [re.search(r"(\d+)\.[\d.]+", said) for said in (chrome, chromedriver)]
    if not versions[0] or not versions[1]:
        raise ChromeUnusable(
            f"no version in what --version says: {chrome!r}, {chromedriver!r}; reinstall both"
        )
    if versions[0][1] != versions[1][1]:
        raise ChromeUnusable(
            f"Chrome is {versions[0][0]}, chromedriver {versions[1][0]}: the first numbers must agree; install"
            " both from one place, or set CRAWLFLEET_CHROME and CRAWLFLEET_CHROMEDRIVER"
        )
    return versions[0][0]


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ChromeUnusable(f"{program} --version cannot be run: {exc}; reinstall it") from exc
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()[-40:])
        raise ChromeUnusable(f"{program} --version ended with {done.returncode}: {said}; reinstall it")
    return done.stdout.strip()


def check_shm(folder: Path = SHM, needed_mb: int = SHM_MB) -> None:
    """Shared memory has to be large enough, and free."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as exc:
        raise ChromeUnusable(f"{folder} cannot be used: {exc.strerror}; mount a tmpfs there") from exc
    free_mb = usage.free // 2**20
    if free_mb < needed_mb:
        raise ChromeUnusable(
            f"{folder} has {free_mb} MB free of {usage.total // 2**20} MB, Chrome needs {needed_mb} MB: in a pod mount"
            f" an emptyDir with medium Memory there, with docker give --shm-size, else `mount -o remount,size=1G {folder}`"
        )


def check_memory(free_mb: float) -> None:
    """There has to be room for an idle Chrome."""
    if free_mb < MEMORY_MB:
        raise ChromeUnusable(
            f"{free_mb:.0f} MB of memory are free here, Chrome needs {MEMORY_MB} MB to start:"
            " raise the container's limit, or end something else"
        )


def _free_memory_mb() -> float:
    """Of the machine and of the container, whichever is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    machine_mb = int(fields["MemAvailable"].split()[0]) / 1024
    limit_mb, used_mb = cgroup.limit_mb(), cgroup.used_mb()
    return machine_mb if limit_mb is None else min(machine_mb, limit_mb - (used_mb or 0))


def check_fonts(folders: Sequence[Path] = FONTS) -> None:
    """Without any font, text has no size and pages lay out as nothing."""
    for folder in folders:
        if any(file.suffix in FONT_FILES for file in folder.rglob("*")):
            return
    raise ChromeUnusable(
        f"there is no font in {' or '.join(map(str, folders))}; `apt-get install fonts-nanum` (it has Korean)"
    )


def _can_sandbox(account: str | None) -> bool:
    """Whether that account may make the namespaces that Chrome's sandbox is built of. Most containers forbid it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    probe = [unshare, "--user", "--map-root-user", "--pid", "--net", "--fork", "true"]
    group = pwd.getpwnam(account).pw_gid if account else None
    try:
        done = subprocess.run(
            probe,
            capture_output=True,
            timeout=SANDBOX_S,
            check=False,
            cwd="/",
            user=account,
            group=group,
            extra_groups=[] if account else None,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
