"""What becomes of a test where there is no cluster for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster.testbed.errors import TestbedError, Unable

OTHER = "CRAWLFLEET_TEST_KUBECONFIG"
"""Names the cluster to test on, if it is not our own."""


@contextmanager
def told_in_one_sentence() -> Iterator[None]:
    """A machine that cannot is no failure, except in CI; anything else is."""
    try:
        yield
    except Unable as exc:
        if os.environ.get("CI") != "true":
            pytest.skip(str(exc))
        pytest.fail(str(exc), pytrace=False)
    except TestbedError as exc:
        pytest.fail(str(exc), pytrace=False)
