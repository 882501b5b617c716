"""Fixtures of the build-time tests."""

from __future__ import annotations

from collections.abc import Iterator

import networks
import pytest


@pytest.fixture(scope="session")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[networks.Exported]:
    """A network of :data:`networks.NETWORKS` and its file; gone when the next one's turn comes."""
    # Threads that wait for each other on shared cores cost more than they bring.
    pytest.importorskip("torch").set_num_threads(1)
    made = networks.export(request.param, tmp_path_factory.mktemp("network"))
    yield made
    made.path.unlink()
