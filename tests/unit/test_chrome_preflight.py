"""What has to be there before a Chrome is launched: each check names what is missing and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from crawlfleet.browser.preflight import (
    check_fonts,
    check_memory,
    check_shm,
    check_versions,
    find_chrome,
    find_chromedriver,
)
from crawlfleet.errors import ChromeUnusable

CHROME = "Chromium 156.0.8078.108 built on Debian GNU/Linux 12"
DRIVER = "ChromeDriver 156.0.8078.79 (730482a940ce-refs/branch-heads/8078@{#2244})"


def program(folder: Path, name: str) -> Path:
    made = folder / name
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    return made


def test_the_program_itself_is_taken_and_not_its_wrapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The death of a wrapper would leave Chrome alive."""
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "chromium")
    real = program(tmp_path, "chromium")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    assert find_chrome("chromium", debian=tmp_path) == str(real)
    assert find_chrome("chromium", debian=tmp_path / "none") == str(tmp_path / "bin" / "chromium")


def test_chrome_may_be_a_path(tmp_path: Path) -> None:
    assert find_chrome(str(program(tmp_path, "my-chrome"))) == str(tmp_path / "my-chrome")


@pytest.mark.parametrize(
    ("find", "words"),
    [
        (find_chrome, r"CRAWLFLEET_CHROME\).*apt-get install chromium-headless-shell"),
        (find_chromedriver, r"CRAWLFLEET_CHROMEDRIVER\).*apt-get install chromium-driver"),
    ],
    ids=["chrome", "chromedriver"],
)
def test_a_missing_program_is_named_with_its_package(find: object, words: str) -> None:
    assert callable(find)
    with pytest.raises(ChromeUnusable, match=r"there is no program /nowhere/it \(" + words) as error:
        find("/nowhere/it")

    assert error.value.exit_code == 69


def test_versions_agree_if_their_first_numbers_do() -> None:
    assert check_versions(CHROME, DRIVER) == "156.0.8078.108"


def test_a_driver_for_another_chrome_is_refused() -> None:
    with pytest.raises(ChromeUnusable, match=r"Chrome is 156\.0\.8078\.108, chromedriver 150\.0\.7871\.100"):
        check_versions(CHROME, DRIVER.replace("156.0.8078.79", "150.0.7871.100"))


def test_a_program_without_a_version_is_refused() -> None:
    with pytest.raises(ChromeUnusable, match="no version"):
        check_versions("cannot open shared object file", DRIVER)


def test_shared_memory_is_measured() -> None:
    check_shm(needed_mb=1)

    with pytest.raises(ChromeUnusable, match=r"/dev/shm has \d+ MB free of \d+ MB.*emptyDir.*--shm-size"):
        check_shm(needed_mb=2**30)


def test_shared_memory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChromeUnusable, match="cannot be used: No such file"):
        check_shm(tmp_path / "shm")


def test_memory_that_is_used_up_is_told() -> None:
    check_memory(256)

    with pytest.raises(ChromeUnusable, match="255 MB of memory are free here, Chrome needs 256 MB"):
        check_memory(255)


def test_one_font_anywhere_is_enough(tmp_path: Path) -> None:
    (tmp_path / "truetype" / "nanum").mkdir(parents=True)
    with pytest.raises(ChromeUnusable, match=r"there is no font in .*apt-get install fonts-nanum"):
        check_fonts([tmp_path / "none", tmp_path])

    (tmp_path / "truetype" / "nanum" / "NanumGothic.ttf").touch()

    check_fonts([tmp_path / "none", tmp_path])
