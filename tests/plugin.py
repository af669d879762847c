"""An adapter that a worker finds as if somebody had installed it: a module, and the entry point that names its class."""

from __future__ import annotations

from pathlib import Path

_METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
_ENTRY_POINT = "[crawlfleet.sources]\n{name} = {name}:Adapter\n"


def install(folder: Path, name: str, code: str) -> dict[str, str]:
    """Install `code`, a module with a class Adapter, as the adapter `name`; the environment of whoever may find it."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(_METADATA.format(name=name))
    (info / "entry_points.txt").write_text(_ENTRY_POINT.format(name=name))
    return {"PYTHONPATH": str(folder)}
