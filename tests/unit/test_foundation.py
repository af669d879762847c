"""What the repository promises before any code runs: what is installed, from where, and what a wheel holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["crawler/crawlfleet", "operator/crawlfleet_operator"]
LINE = re.compile(r"[a-z0-9-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?|\s*#.*|")
IMAGES = ["crawler/requirements.lock", "operator/requirements.lock"]
LOCKS = ["requirements.lock", *IMAGES, "requirements-build.lock"]
ADDRESS = re.compile(r"://|--(extra-)?index-url|--find-links|--trusted-host|^-[if]\b", re.MULTILINE)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(lock: str) -> set[str]:
    """Each package with its version."""
    return {line.split()[0] for line in (ROOT / lock).read_text().splitlines() if "==" in line}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index(lock: str) -> None:
    """Whoever installs chooses where from: a company's mirror as well as the public index."""
    assert ADDRESS.search((ROOT / lock).read_text()) is None


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pinned_and_hashed_requirements_and_nothing_else(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert len(pinned(lock)) > 5


@pytest.mark.parametrize("lock", IMAGES)
def test_an_image_has_the_versions_that_were_tested(lock: str) -> None:
    assert pinned(lock) <= pinned("requirements.lock")


@pytest.mark.parametrize("lock", IMAGES)
def test_an_image_has_what_its_extra_asks_for(lock: str, project: dict[str, Any]) -> None:
    extra = lock.partition("/")[0]
    asked = project["project"]["dependencies"] + project["project"]["optional-dependencies"][extra]
    names = {re.split(r"[\[>]", require)[0] for require in asked}

    assert names <= {package.partition("==")[0] for package in pinned(lock)}


def test_hatchling_builds_one_wheel_of_both_packages(project: dict[str, Any]) -> None:
    assert project["build-system"]["build-backend"] == "hatchling.build"
    assert [require.split(">")[0] for require in project["build-system"]["requires"]] == ["hatchling"]
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": PACKAGES}
    assert all((ROOT / package / "__init__.py").is_file() for package in PACKAGES)


@pytest.mark.parametrize("folder", ["crawler", "operator", "tests", "tests/unit", "tests/integration"])
def test_a_folder_of_sources_is_no_package(folder: str) -> None:
    """A package `operator` would hide the standard library's; tests find their helpers by `pythonpath`."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()
