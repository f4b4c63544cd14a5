"""diffusers' tests of StableDiffusionPipeline, on TextToImagePipeline.

They fetch a tiny tokenizer from the Hub; here its place is taken by one that spells words, so that they run
without a network. Numbers that were recorded with the Hub's tokenizer are compared with none of ours.
"""

from collections.abc import Callable

import diffusers.pipelines
import pytest
from diffusers_checkout import upstream
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from guided_diffusers.pipelines import TextToImagePipeline

stable_diffusion = upstream("pipelines.stable_diffusion.test_stable_diffusion")


# StableDiffusionPipeline itself gives other numbers with the tokenizer below.
RECORDED_WITH_ITS_TOKENIZER = (
    "test_stable_diffusion_ddim_factor_8",
    "test_stable_diffusion_k_lms",
    "test_stable_diffusion_k_euler_ancestral",
    "test_stable_diffusion_k_euler",
    "test_stable_diffusion_negative_prompt",
    "test_stable_diffusion_lcm",
    "test_stable_diffusion_lcm_custom_timesteps",
)
FETCHES = ("test_stable_diffusion_no_safety_checker", "test_pipeline_accept_tuple_type_unet_sample_size")
LOGS = ("test_stable_diffusion_long_prompt",)


class SpellingTokenizer(CLIPTokenizer):
    """A CLIPTokenizer without merges: a token a letter. The ids of its special tokens are the tests'."""

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> CLIPTokenizer:
        letters = sorted(ByteLevel.alphabet())
        tokens = ["<|startoftext|>", "<|pad|>", "<|endoftext|>", *letters, *[f"{c}</w>" for c in letters]]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


class Ours:
    pipeline_class = TextToImagePipeline

    def get_dummy_components(self, *args: object, **kwargs: object) -> dict:
        fetched, stable_diffusion.CLIPTokenizer = stable_diffusion.CLIPTokenizer, SpellingTokenizer
        try:
            return super().get_dummy_components(*args, **kwargs)
        finally:
            stable_diffusion.CLIPTokenizer = fetched


def skipped(name: str, reason: str) -> Callable:
    """Takes the place of one of diffusers' tests."""

    @pytest.mark.skip(reason=reason)
    def test(self: object) -> None: ...

    test.__name__ = name
    return test


class TestPipeline(Ours, stable_diffusion.TestStableDiffusionPipeline):
    @pytest.fixture(autouse=True)
    def named_as_a_pipeline_of_diffusers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One test reads the source of `diffusers.pipelines.<name of the class>`."""
        monkeypatch.setattr(diffusers.pipelines, "TextToImagePipeline", TextToImagePipeline, raising=False)


for name in RECORDED_WITH_ITS_TOKENIZER:
    setattr(TestPipeline, name, skipped(name, "its numbers were recorded with the tokenizer of the Hub"))
for name in FETCHES:
    setattr(TestPipeline, name, skipped(name, "fetches a model from the Hub"))
for name in LOGS:
    setattr(TestPipeline, name, skipped(name, "reads the logger of diffusers' module; ours has its own"))


class TestMemory(Ours, stable_diffusion.TestStableDiffusionPipelineMemory):
    pass
