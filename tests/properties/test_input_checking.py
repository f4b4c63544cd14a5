"""10,000 cases over everything that checks its input: it works, or says in one line what is wrong."""

from __future__ import annotations

import math
import os

import pytest
from properties import arithmetic, calling, configuring, guiding, measuring
from properties.harness import Target, try_out

TARGETS: dict[str, Target] = {
    f"{group.__name__.rpartition('.')[2]}: {name}": target
    for group in (arithmetic, guiding, calling, measuring, configuring)
    for name, target in group.TARGETS.items()
}
CASES = int(os.environ.get("GUIDED_DIFFUSERS_CASES", "10000"))


@pytest.mark.parametrize("name", TARGETS)
def test_some_cases(name: str):
    assert try_out(TARGETS[name], 5).cases >= 5


@pytest.mark.slow
def test_all_cases(capsys: pytest.CaptureFixture[str]):
    tried = [try_out(target, math.ceil(CASES / len(TARGETS))) for target in TARGETS.values()]
    cases, worked = sum(each.cases for each in tried), sum(each.worked for each in tried)
    with capsys.disabled():
        print(f"\n{cases:,} cases over {len(TARGETS)} calls, of which {worked:,} worked")
    assert cases >= CASES and cases / 4 < worked < cases
