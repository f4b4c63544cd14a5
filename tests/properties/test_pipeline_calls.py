"""300 whole calls of all pipelines: images that are finite, or one line that names the argument."""

from __future__ import annotations

import os

import pytest
from properties.harness import try_out
from properties.pipelines import TARGETS

CALLS = int(os.environ.get("GUIDED_DIFFUSERS_CALLS", "300"))
OF_EACH = {  # in 300, by how much there is to combine
    "TextToImagePipeline": 80,
    "ImagePipeline": 40,
    "ClassifierGuidedPipeline": 60,
    "ClassifierGuidedTextToImagePipeline": 50,
    "VAEPipeline": 20,
    "UpsamplePipeline": 30,
    "CascadePipeline": 20,
}


@pytest.mark.parametrize("name", TARGETS)
def test_some_calls(name: str):
    assert try_out(TARGETS[name], 3).cases >= 3


@pytest.mark.slow
def test_all_calls(capsys: pytest.CaptureFixture[str]):
    assert OF_EACH.keys() == TARGETS.keys()
    tried = [try_out(TARGETS[name], -(-share * CALLS // 300)) for name, share in OF_EACH.items()]
    calls, worked = sum(each.cases for each in tried), sum(each.worked for each in tried)
    with capsys.disabled():
        print(f"\n{calls} calls of {len(TARGETS)} pipelines, of which {worked} gave images")
    assert calls >= CALLS and calls / 4 < worked < calls
