"""A CLIP tokenizer trained on captions of one's own, and a text encoder's configuration that fits it.

A text encoder trained jointly with a denoiser on a small dataset needs a small vocabulary. The tokenizer is
CLIP's byte-level byte-pair encoding (lower case, `</w>` at the end of a word) with other merges: an ordinary
CLIPTokenizer for every pipeline.

References:
    Neural Machine Translation of Rare Words with Subword Units, arXiv:1508.07909.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerBase

from guided_diffusers.core.checks import check_int, check_that

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
    check_int("vocabulary_size", vocabulary_size, len(base) + 1, None)  # of bytes and special tokens
    check_int("context_length", context_length, 3, None)  # beginning and end included
    captions = list(captions)
    check_that(captions, "captions", captions, "at least one text")
    merges = _learn_merges(_count_words(captions), vocabulary_size - len(base) - 1)
    tokens = dict.fromkeys([*base, *(first + second for first, second in merges), END])
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


def _count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each word comes, written in byte letters, split and normalised as CLIP's tokenizer does."""
    backend = CLIPTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for caption in captions:
        normalised = backend.normalizer.normalize_str(caption)
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised))
    return words


def _learn_merges(words: Mapping[str, int], limit: int) -> list[tuple[str, str]]:
    """At most `limit` merges, the most frequent pair first.

    Equal counts are settled by the pair's spelling, so that the same captions always give the same tokenizer,
    and a resumed training the same token ids. (The library tokenizers' trainer settles them by chance.)
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    frequencies = list(words.values())
    counts: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def count(number: int, sign: int) -> list[tuple[str, str]]:
        pairs = list(zip(spelled[number], spelled[number][1:], strict=False))
        for pair in pairs:
            counts[pair] += sign * frequencies[number]
            places[pair].add(number)
        return pairs

    for number in range(len(spelled)):
        count(number, 1)
    queue = [(-times, pair) for pair, times in counts.items()]
    heapq.heapify(queue)
    merges: list[tuple[str, str]] = []
    while queue and len(merges) < limit:
        times, pair = heapq.heappop(queue)
        if -times != counts[pair] or times == 0:
            continue  # its count has changed since: another entry has the new one
        merges.append(pair)
        changed: set[tuple[str, str]] = set()
        for number in places.pop(pair):
            changed.update(count(number, -1))
            spelled[number] = _merge(spelled[number], pair)
            changed.update(count(number, 1))
        for other in changed:
            heapq.heappush(queue, (-counts[other], other))
    return merges


def _merge(letters: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's pieces with every occurrence of the pair, from the left, made one."""
    merged: list[str] = []
    for letter in letters:
        if merged and (merged[-1], letter) == pair:
            merged[-1] += letter
        else:
            merged.append(letter)
    return merged
