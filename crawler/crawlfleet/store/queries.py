"""The named statements of `sql/*.sql`: SQL stays SQL, each statement with a name and one line of why."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString

HEADER = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def _statements() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted((files("crawlfleet.store") / "sql").iterdir(), key=lambda f: f.name):
        _, *parts = HEADER.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise ValueError(f"statement {name} stands twice, the second time in {file.name}")
            found[name] = text.strip().rstrip(";")
    return found


def sql(name: str, **literals: int) -> LiteralString:
    """The statement of that name; `{words}` in it are replaced by whole numbers only.

    Literals exist for LIMIT: with a computed LIMIT PostgreSQL sorts the table (design, section 5).
    """
    text = _statements()[name]
    for word, number in literals.items():
        text = text.replace("{" + word + "}", str(int(number)))
    return text
