"""A Hub for tests: a process of its own on a free port, its state on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.loopback import Hub, check_store


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Empty at first; whole at the end."""
    root: Path = tmp_path_factory.mktemp("hub")
    hub = Hub(root)
    yield hub
    hub.kill()
    check_store(root)
