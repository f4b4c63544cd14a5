"""diffusers' tests of StableDiffusionPipeline, on TextToImagePipeline.

They fetch a tiny tokenizer from the Hub; here its place is taken by one that spells words, so that they run without
a network. Numbers that were recorded with the Hub's tokenizer are therefore compared with none of ours.
"""

from diffusers_checkout import upstream
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from guided_diffusers.pipelines import TextToImagePipeline

stable_diffusion = upstream("pipelines.stable_diffusion.test_stable_diffusion")


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


class TestPipeline(Ours, stable_diffusion.TestStableDiffusionPipeline):
    pass


class TestMemory(Ours, stable_diffusion.TestStableDiffusionPipelineMemory):
    pass
