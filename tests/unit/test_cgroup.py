"""A container's memory, as cgroup v2 and v1 tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crawlfleet import cgroup

MB = 2**20
V2 = {
    "memory.max": f"{1024 * MB}\n",
    "memory.current": f"{700 * MB}\n",
    "memory.stat": f"anon {500 * MB}\ninactive_file {150 * MB}\nactive_file 7\n",
}
V1 = {
    "memory/memory.limit_in_bytes": f"{1024 * MB}\n",
    "memory/memory.usage_in_bytes": f"{700 * MB}\n",
    "memory/memory.stat": f"inactive_file 3\ntotal_inactive_file {150 * MB}\n",
}


def group(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_what_can_be_dropped_does_not_count(tmp_path: Path, files: dict[str, str]) -> None:
    root = group(tmp_path, files)

    assert cgroup.limit_mb(root) == 1024
    assert cgroup.used_mb(root) == 550


@pytest.mark.parametrize(
    "files",
    [{}, V2 | {"memory.max": "max\n"}, V1 | {"memory/memory.limit_in_bytes": "9223372036854771712\n"}],
    ids=["no cgroup", "v2", "v1"],
)
def test_without_a_limit_there_is_nothing_to_tell(tmp_path: Path, files: dict[str, str]) -> None:
    root = group(tmp_path, files)

    assert cgroup.limit_mb(root) is None
    assert cgroup.used_mb(root) is None
