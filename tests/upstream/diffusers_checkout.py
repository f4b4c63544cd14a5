"""Modules of diffusers' own tests, from the checkout of diffusers named by DIFFUSERS_CHECKOUT.

Nothing of them is kept here: the checkout's package `tests` is imported under the name `diffusers_tests`, and
its classes are subclassed with an attribute changed. Without a checkout all are skipped. To run them:

    pip install parameterized torchsde
    DIFFUSERS_CHECKOUT=/path/to/diffusers python -m pytest tests/upstream
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(os.environ["DIFFUSERS_CHECKOUT"]) if os.environ.get("DIFFUSERS_CHECKOUT") else None


def upstream(name: str) -> ModuleType:
    """A module of diffusers' tests, such as `schedulers.test_scheduler_ddpm`; skips the caller without it."""
    if CHECKOUT is None:
        pytest.skip(
            "set DIFFUSERS_CHECKOUT to a checkout of diffusers to run its tests", allow_module_level=True
        )
    if "diffusers_tests" not in sys.modules:
        folder = CHECKOUT / "tests"
        spec = importlib.util.spec_from_file_location(
            "diffusers_tests", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["diffusers_tests"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["diffusers_tests"])
    pytest.importorskip("parameterized", reason="diffusers' tests need the package parameterized")
    return importlib.import_module(f"diffusers_tests.{name}")
