"""What a Dockerfile says, as far as tests ask."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Instruction = tuple[str, str]


def instructions(file: Path) -> list[Instruction]:
    """Each instruction and what it says, lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word
    ]


def stages(file: Path) -> dict[str, list[Instruction]]:
    """The instructions of each stage, after those of the stage that it begins with."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for word, rest in instructions(file):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        elif found:
            found[name].append((word, rest))
    return found


def images(file: Path) -> dict[str, list[Instruction]]:
    """The stages that no other one is made of."""
    used = {rest.split()[0] for word, rest in instructions(file) if word == "FROM"}
    used |= {found[1] for word, rest in instructions(file) if (found := re.match(r"--from=(\S+)", rest))}
    return {name: stage for name, stage in stages(file).items() if name not in used}


def last(stage: list[Instruction], word: str) -> str:
    """What the stage says last with that instruction; empty if nothing."""
    return next((rest for found, rest in reversed(stage) if found == word), "")


def command(stage: list[Instruction], words: list[str] | None = None) -> list[str]:
    """What a container runs: the entrypoint and `words`, or else the stage's own."""
    entrypoint, default = (json.loads(last(stage, word) or "[]") for word in ("ENTRYPOINT", "CMD"))
    return [*entrypoint, *(default if words is None else words)]
