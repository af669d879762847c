"""The key ring seals and opens; nothing shows a key; redaction finds a secret in every form it is sent in."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from crawlfleet.credentials import KeyRing, redact
from crawlfleet.errors import BadConfiguration, CrawlfleetError

CONTEXT = "account/cafe24/17"
CREDENTIALS = {"mall_id": "shop", "refresh_token": "토큰", "expires_at": None}


def line(key_id: str, byte: int = 1, length: int = 32) -> str:
    return f"{key_id}:{base64.b64encode(bytes([byte]) * length).decode()}"


def ring(tmp_path: Path, *lines: str) -> KeyRing:
    file = tmp_path / "keys"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return KeyRing.load(file)


def test_what_was_sealed_can_be_opened(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    assert keys.open(keys.seal(CREDENTIALS, CONTEXT), CONTEXT) == CREDENTIALS


def test_bytes_can_be_sealed_too(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    assert keys.open_bytes(keys.seal(b"\x00\xff", "egress/1"), "egress/1") == b"\x00\xff"


def test_bytes_are_not_opened_as_a_mapping(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    with pytest.raises(CrawlfleetError, match="egress/1 is not a mapping") as refused:
        keys.open(keys.seal(b"planted", "egress/1"), "egress/1")
    assert "planted" not in str(refused.value)


def test_a_sealed_value_shows_nothing_of_the_plain_one(tmp_path: Path) -> None:
    assert b"planted" not in ring(tmp_path, line("k1")).seal({"password": "planted"}, CONTEXT)


def test_sealing_twice_gives_different_values(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    assert keys.seal(CREDENTIALS, CONTEXT) != keys.seal(CREDENTIALS, CONTEXT)


def test_a_sealed_value_cannot_be_moved_to_another_row(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    with pytest.raises(CrawlfleetError, match="account/cafe24/18 cannot be opened with key 'k1'"):
        keys.open(keys.seal(CREDENTIALS, CONTEXT), "account/cafe24/18")


def test_no_byte_of_a_sealed_value_can_be_changed(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    blob = keys.seal(b"plain", CONTEXT)
    for index in range(len(blob)):
        changed = blob[:index] + bytes([blob[index] ^ 1]) + blob[index + 1 :]
        with pytest.raises(CrawlfleetError):
            keys.open_bytes(changed, CONTEXT)


def test_a_sealed_value_cannot_be_given_another_key_id(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1", 1), line("k2", 1))
    relabelled = keys.seal(b"plain", CONTEXT).replace(b"k1", b"k2", 1)
    with pytest.raises(CrawlfleetError, match="cannot be opened with key 'k2'"):
        keys.open_bytes(relabelled, CONTEXT)


def test_no_sealed_value_can_be_cut_off(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    blob = keys.seal(b"plain", CONTEXT)
    for length in range(len(blob)):
        with pytest.raises(CrawlfleetError):
            keys.open_bytes(blob[:length], CONTEXT)


def test_the_first_key_seals_and_all_open(tmp_path: Path) -> None:
    old = ring(tmp_path, line("old", 1))
    both = ring(tmp_path, line("new", 2), line("old", 1))
    sealed = old.seal(CREDENTIALS, CONTEXT)
    assert both.open(sealed, CONTEXT) == CREDENTIALS
    assert both.needs_reseal(sealed)
    assert not both.needs_reseal(both.seal(CREDENTIALS, CONTEXT))


def test_an_unknown_key_is_named_with_the_ring(tmp_path: Path) -> None:
    sealed = ring(tmp_path, line("k1")).seal(CREDENTIALS, CONTEXT)
    keys = ring(tmp_path, line("k2", 2))
    with pytest.raises(
        BadConfiguration, match=f"sealed with key 'k1', which is not in the key ring {keys.path}"
    ):
        keys.open(sealed, CONTEXT)


def test_another_key_of_the_same_id_opens_nothing(tmp_path: Path) -> None:
    sealed = ring(tmp_path, line("k1", 1)).seal(CREDENTIALS, CONTEXT)
    with pytest.raises(CrawlfleetError, match="that id once named another key"):
        ring(tmp_path, line("k1", 2)).open(sealed, CONTEXT)


def test_what_is_no_sealed_value_needs_no_reseal_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(CrawlfleetError, match="does not hold a sealed value"):
        ring(tmp_path, line("k1")).needs_reseal(b"{}")


def test_comments_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    assert ring(tmp_path, "\ufeff# keys", "", f"  {line('k1')}\r").ids == ("k1",)


def test_a_new_key_can_be_loaded(tmp_path: Path) -> None:
    first, second = KeyRing.new_key(), KeyRing.new_key()
    assert first != second
    assert len(ring(tmp_path, first, second).ids) == 2


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "holds no key"),
        (["# nothing"], "holds no key"),
        ([line("k1"), line("k1", 2)], "line 2: key id 'k1' stands twice"),
        ([line("k1", length=16)], "line 1: the key 'k1' has 16 bytes, not 32"),
        (["", "k1:pl@nted"], "line 2: the key 'k1' is not standard base64"),
        (["k1:plänted"], "line 1: the key 'k1' is not standard base64"),
        (["planted"], "line 1: expected `id:base64`"),
        (["pla=nted:k1"], "line 1: expected `id:base64`"),
        ([":planted"], "line 1: expected `id:base64`"),
    ],
)
def test_a_bad_key_ring_is_named_without_its_keys(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(BadConfiguration) as refused:
        ring(tmp_path, *lines)
    assert reason in str(refused.value)
    assert not any(
        part in str(refused.value) for part in ("pl@nted", "plänted", "planted", "pla=nted", "AQEB")
    )


def test_a_missing_key_ring_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"key ring .*nowhere does not exist"):
        KeyRing.load(tmp_path / "nowhere")


def test_a_directory_is_no_key_ring(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="cannot be read: Is a directory"):
        KeyRing.load(tmp_path)


def test_a_binary_file_is_no_key_ring(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfiguration, match="is not text"):
        KeyRing.load(tmp_path / "keys")


def test_the_repr_shows_ids_but_no_key(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("k1"))
    assert "k1" in repr(keys)
    assert line("k1").partition(":")[2] not in repr(keys)
    assert repr(b"\x01" * 32) not in repr(keys)


SECRET = 'p@ss/w ör+d"%~~~~~~'
"""Holds what each quoting treats in its own way; the tildes become a plus sign in base64."""


@pytest.mark.parametrize(
    "sent",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote(SECRET, safe="!$&'()*+,;=@/"),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
    ],
)
def test_a_secret_is_redacted_however_it_is_quoted(sent: str) -> None:
    assert redact(f"a={sent}&b={sent}", [SECRET]) == "a=[secret]&b=[secret]"


@pytest.mark.parametrize("user", ["", "u", "us", "use"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_basic_header_is_redacted_at_every_alignment(user: str, encode: Callable[[bytes], bytes]) -> None:
    header = encode(f"{user}:{SECRET}".encode()).decode()
    assert redact(f"Authorization: Basic {header}", [SECRET]) == "Authorization: Basic [secret]"


def test_the_longest_secret_wins() -> None:
    assert redact("token-and-more token", ["token", "token-and-more"]) == "[secret] [secret]"


def test_overlapping_secrets_leave_nothing() -> None:
    assert redact("abcdefgh", ["abcde", "defgh"]) == "[secret]"


def test_values_below_four_characters_are_left_alone() -> None:
    assert redact("a shop of shops", ["a", "", "sho"]) == "a shop of shops"


def test_the_marker_itself_is_never_redacted() -> None:
    assert redact("planted", ["planted", "secret"]) == "[secret]"


def test_text_without_a_secret_is_unchanged() -> None:
    assert (
        redact("GET /api/v2/admin/orders?offset=0", ["planted", SECRET])
        == "GET /api/v2/admin/orders?offset=0"
    )
