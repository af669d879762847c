"""The Dockerfiles: on a base that can be replaced, and of a user that Kubernetes accepts as no root."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from dockerfiles import ROOT, images, instructions, last, stages

OURS = [ROOT / "Dockerfile.crawler", ROOT / "Dockerfile.operator"]
ALL = [*OURS, *sorted((ROOT / "tests" / "cluster" / "images").glob("*.Dockerfile"))]


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.name)
def test_the_base_can_be_replaced_by_a_mirror_of_ones_own(file: Path) -> None:
    assert ("ARG", "BASE_IMAGE=debian:bookworm-slim") in instructions(file)
    own = set(stages(file)) | {"${BASE_IMAGE}"}
    assert {rest.split()[0] for word, rest in instructions(file) if word == "FROM"} <= own


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.name)
def test_an_image_runs_as_a_number_that_is_not_root(file: Path) -> None:
    """`runAsNonRoot` cannot tell who a name is."""
    for name, stage in images(file).items():
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(stage, "USER")), name


def test_our_images_share_their_first_layers() -> None:
    crawler, operator = (stages(file)["python"] for file in OURS)

    assert crawler == operator


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_the_labels_name_the_version_of_the_package(file: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    labelled = re.findall(r'org\.opencontainers\.image\.version="(.*)"', file.read_text())

    assert labelled == [version]


def test_a_build_may_copy_what_the_dockerfiles_copy_and_no_more() -> None:
    """.dockerignore lists it, so that no secret lying about gets into a build."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        path
        for file in OURS
        for word, rest in instructions(file)
        if word == "COPY" and not rest.startswith("--from")
        for path in rest.split()[:-1]
    }

    assert rules[0] == "*"
    assert [path for path in allowed if not any(_is_below(path, copy) for copy in copied)] == []
    assert [copy for copy in copied if not any(_is_below(path, copy) for path in allowed)] == []


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")
