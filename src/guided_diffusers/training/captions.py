"""A CLIP tokenizer trained on captions of one's own, and a text encoder's configuration that fits it.

A text encoder trained jointly with a denoiser on a small dataset needs a small vocabulary. The tokenizer is
CLIP's byte-level byte-pair encoding (lower case, `</w>` at the end of a word) with other merges: an ordinary
CLIPTokenizer for every pipeline.

References:
    Neural Machine Translation of Rare Words with Subword Units, arXiv:1508.07909.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerBase

BEGINNING, END, PADDING = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def train_tokenizer(
    captions: Iterable[str], vocabulary_size: int = 1024, context_length: int = 77
) -> CLIPTokenizer:
    """Trains a CLIPTokenizer.

    The 256 bytes, each within and at the end of a word, are always in the vocabulary, so that any prompt can
    be written; the more frequent pieces of the captions fill the rest. Padding is a token of its own, id 0;
    the beginning is 1 and the end, whose place CLIPTextModel pools and which is also the unknown token, is
    the highest id, as in CLIP. It must not be 2: transformers reads an `eos_token_id` of 2 as a mark of old
    checkpoints and pools elsewhere.

    An empty prompt becomes beginning, end, padding: the null condition.

    Args:
        captions: The texts, each counted as often as it comes.
        vocabulary_size: An upper limit of the number of tokens, at least 515 (special tokens and bytes). Few
            captions make fewer tokens: merging stops when every word is one.
        context_length: Of the text encoder, in tokens with beginning and end: `model_max_length`.

    Raises:
        ValueError: `vocabulary_size` is below 515 or `context_length` below 3, or there are no captions.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [PADDING, BEGINNING, *alphabet, *(letter + "</w>" for letter in alphabet)]
    if vocabulary_size < len(base) + 1:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}: it must be at least {len(base) + 1}, three "
            "special tokens and every byte within and at the end of a word"
        )
    if context_length < 3:
        raise ValueError(
            f"context_length is {context_length}: it must be at least 3, beginning and end included"
        )
    captions = list(captions)
    if not captions:
        raise ValueError("captions is empty: a tokenizer is trained on at least one text")
    pieces, merges = _train_merges(captions, vocabulary_size - len(base) - 1, alphabet)
    tokens = dict.fromkeys([*base, *pieces, END])
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        bos_token=BEGINNING,
        eos_token=END,
        unk_token=END,
        pad_token=PADDING,
        model_max_length=context_length,
    )


def text_config_for(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int = 128,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    **arguments: object,
) -> CLIPTextConfig:
    """The configuration of a CLIPTextModel that fits a tokenizer.

    Vocabulary, context length and every special id are taken from the tokenizer.

    Args:
        tokenizer: A tokenizer with beginning, end and padding tokens and a `model_max_length`.
        hidden_size: Width of the text encoder.
        num_hidden_layers: Its number of layers.
        num_attention_heads: Heads of each, a divisor of `hidden_size`.
        arguments: Any other of CLIPTextConfig's; `intermediate_size` is four times the width unless given.

    Raises:
        ValueError: the tokenizer's end has id 2, which transformers takes for a mark of old checkpoints.
    """
    if tokenizer.eos_token_id == 2:
        raise ValueError(
            "the tokenizer's eos_token_id is 2, by which transformers recognises old checkpoints "
            "that pool at the highest id: give the end token another id (train_tokenizer does)"
        )
    arguments = {"intermediate_size": 4 * hidden_size, "projection_dim": hidden_size, **arguments}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        **arguments,
    )


def _train_merges(
    captions: list[str], limit: int, alphabet: list[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """At most `limit` merged pieces, and the merges that make them, in the order of learning."""
    reference = CLIPTokenizer().backend_tokenizer  # for CLIP's normalisation and splitting
    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    letters = len(alphabet)
    trainer = BpeTrainer(
        vocab_size=2 * letters + limit,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]][:limit]
    return ["".join(pair) for pair in merges], merges
