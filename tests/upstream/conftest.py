"""What diffusers' tests expect of the session they run in."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the adapters import diffusers_checkout

from diffusers_checkout import CHECKOUT  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks of diffusers' tests known, which --strict-markers asks for."""
    if CHECKOUT:
        texts = [path.read_text() for path in (CHECKOUT / "tests").rglob("*test*.py")]
        names = {name for text in texts for name in re.findall(r"pytest\.mark\.(\w+)", text)}
        for name in names - {"skip", "skipif", "xfail", "parametrize", "usefixtures", "filterwarnings"}:
            config.addinivalue_line("markers", f"{name}: a mark of diffusers' tests")
