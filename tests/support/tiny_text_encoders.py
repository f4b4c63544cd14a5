"""Text encoders that are not Stable Diffusion's, tiny: transformers' own classes, a token a letter."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Tokenizer

WIDTH, CONTEXT = 16, 16
_SIZES = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_T5 = {"vocab_size": 40, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_CLIP = {**_SIZES, "max_position_embeddings": CONTEXT, "bos_token_id": 3, "eos_token_id": 1}


def t5_tokenizer(context: int = CONTEXT) -> T5Tokenizer:
    """Padding is 0 and the end 1, as T5's."""
    letters = [(letter, -3.0) for letter in string.ascii_lowercase]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=context)


def fast_tokenizer(context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """Of no model's own class, with the same special tokens."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    vocabulary = {token: number for number, token in enumerate([*special, *string.ascii_lowercase])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=context, **tokens)


def _made(name: str, config: str, **sizes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()


def text_encoder(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model of that class of transformers, and a tokenizer of its own."""
    if name.startswith("T5"):
        return _made(name, "T5Config", **_T5), t5_tokenizer()
    if name.startswith("CLIPText"):
        return _made(name, "CLIPTextConfig", **_CLIP), fast_tokenizer()
    if name == "BartModel":
        sizes = {"vocab_size": 40, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        return _made(name, "BartConfig", **sizes, **heads), fast_tokenizer()
    if name == "Gemma2Model":
        return _made(name, "Gemma2Config", **_SIZES, num_key_value_heads=1, head_dim=8), fast_tokenizer()
    return _made(name, "BertConfig", **_SIZES), fast_tokenizer()


def saved(name: str, folder: Path, context: int = CONTEXT, pipeline: bool = False) -> Path:
    """A folder of such a text encoder with its tokenizer; of a pipeline, in folders of their own."""
    encoder, tokenizer = text_encoder(name)
    tokenizer.model_max_length = context
    encoder.save_pretrained(folder / ("text_encoder" if pipeline else ""))
    tokenizer.save_pretrained(folder / ("tokenizer" if pipeline else ""))
    return folder
