"""300 whole calls of all pipelines: images that are finite, or one line that names the argument."""

from __future__ import annotations

import os

import pytest
from properties.harness import try_out
from properties.pipelines import TARGETS

CASES = int(os.environ.get("GUIDED_DIFFUSERS_CALLS", "300"))
OF_EACH = {  # in 300, by how much there is to combine
    "TextToImagePipeline": 100,
    "ImagePipeline": 40,
    "ClassifierGuidedPipeline": 70,
    "ClassifierGuidedTextToImagePipeline": 60,
    "VAEPipeline": 30,
}


@pytest.mark.parametrize("name", TARGETS)
def test_some_calls(name: str):
    assert try_out(TARGETS[name], 3) > 0


@pytest.mark.slow
def test_all_calls(capsys: pytest.CaptureFixture[str]):
    counts = {name: try_out(TARGETS[name], -(-share * CASES // 300)) for name, share in OF_EACH.items()}
    with capsys.disabled():
        print(f"\n{sum(counts.values())} calls of {len(counts)} pipelines")
    assert counts.keys() == TARGETS.keys() and sum(counts.values()) >= CASES
