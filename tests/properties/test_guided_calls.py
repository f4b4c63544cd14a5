"""500 calls of `guide` over pipelines, terms and arguments: they draw, or one line names what is wrong."""

from __future__ import annotations

import os

import pytest
from properties.harness import try_out
from properties.stock import TARGET

CALLS = int(os.environ.get("GUIDED_DIFFUSERS_CALLS", "500"))


def test_some_calls():
    assert try_out(TARGET, 4).cases >= 4


@pytest.mark.slow
def test_all_calls(capsys: pytest.CaptureFixture[str]):
    tried = try_out(TARGET, CALLS)
    with capsys.disabled():
        print(f"\n{tried.cases} calls of guide, of which {tried.worked} drew")
    assert tried.cases >= CALLS and tried.cases / 4 < tried.worked < tried.cases
