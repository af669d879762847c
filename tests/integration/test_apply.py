"""Sources as the manifests declare them, written to the database."""

from __future__ import annotations

from typing import Any

import pytest
from builders import session_keys

from crawlfleet.apply import declare
from crawlfleet.errors import BadInput
from crawlfleet.manifests import CrawlSource, Manifests
from crawlfleet.store.connection import Connection


def cafe24(name: str, **spec: Any) -> Manifests:
    document = {
        "apiVersion": "crawlfleet.dev/v1alpha1",
        "kind": "CrawlSource",
        "metadata": {"name": name},
        "spec": {"adapter": "cafe24", "maxConcurrent": 2} | spec,
    }
    return Manifests(sources={name: CrawlSource.model_validate(document)})


def test_the_official_address_is_the_same_exit_spelled_out_or_left_out(conn: Connection) -> None:
    declare(conn, session_keys(), cafe24("implied"))
    with pytest.raises(
        BadInput, match=r"same exit \({mall_id}\.cafe24api\.com via direct\).* CrawlSource implied"
    ):
        declare(conn, session_keys(), cafe24("spelled", baseURL="https://{mall_id}.cafe24api.com/"))


def test_another_address_of_the_same_adapter_is_another_exit(conn: Connection) -> None:
    declare(conn, session_keys(), cafe24("official"))
    declare(conn, session_keys(), cafe24("test-shop", baseURL="http://127.0.0.1:8024/{mall_id}"))
    assert conn.execute("select count(distinct exit) from egress").fetchone() == (2,)
