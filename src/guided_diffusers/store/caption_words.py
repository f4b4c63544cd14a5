"""The words of a checkpoint's training captions, kept with its tokenizer.

A network that is asked for a word it has never seen draws something all the same: its tokenizer spells the
word in pieces that it has seen elsewhere. So a training script writes the words of its captions into the
tokenizer's configuration (`caption_words` in tokenizer_config.json, one string), where whatever saves, loads
or pushes the tokenizer keeps them, and a prompt with others is told. A tokenizer without them says nothing.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from guided_diffusers.core.checks import shown

KEY = "caption_words"
MOST = 2**16
"""So many words are kept, the most frequent: about half a megabyte."""

_EXAMPLES = 3
_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKS = (  # of letters: accents, points of Hebrew and Arabic, vowels of the scripts of India, joiners
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0df3"
    "\u200c\u200d"
)
_LETTER = f"[^\\W_{_WITHOUT_SPACES}]"
_RUN = re.compile(f"{_LETTER}+")
_WORD = re.compile(f"[{_WITHOUT_SPACES}]|{_LETTER}(?:{_LETTER}|[{_MARKS}])*")
_WEIGHT = re.compile(r":\s*[-+]?[\d.]+\s*(?=\))")
"""The number of "(a boot:1.2)", as other tools weigh words: no word, though the text encoder reads it."""


def words_of(text: str) -> list[str]:
    """The words of a text, lower case: runs of letters, with their marks, and digits.

    Of scripts without spaces, each sign.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def keep_words(tokenizer: Any, captions: Iterable[str], known: Collection[str] = ()) -> None:
    """Write the words of captions into a tokenizer's configuration.

    Args:
        tokenizer: A tokenizer of transformers.
        captions: The texts; beyond `MOST` words those that come in most of them are kept.
        known: Words that are kept before these.
    """
    counts = Counter(word for caption in captions for word in set(words_of(caption)))
    frequent = sorted(counts.keys() - set(known), key=lambda word: (-counts[word], word))
    tokenizer.init_kwargs[KEY] = " ".join(sorted([*known, *frequent][:MOST]))


def known_words(tokenizer: Any) -> frozenset[str] | None:
    """The words of the captions that a tokenizer's checkpoint was trained on; None where it does not say."""
    kept = getattr(tokenizer, "init_kwargs", {}).get(KEY)
    return _split(kept) if isinstance(kept, str) else None


def new_words(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """The words of texts that no training caption has, in their order; none where that is not known."""
    kept = getattr(tokenizer, "init_kwargs", {}).get(KEY)
    if not isinstance(kept, str):
        return []
    known = _split(kept)
    text = _WEIGHT.sub("", "\n".join(texts))
    if own := sorted(getattr(tokenizer, "added_tokens_encoder", ()), key=len, reverse=True):
        # Special ones, and those of textual inversion, have embeddings of their own.
        text = re.sub(rf"(?<!\w)(?:{'|'.join(map(re.escape, own))})(?!\w)", " ", text)
    unknown = [word for word in dict.fromkeys(words_of(text)) if word not in known]
    # Older checkpoints kept what lies between a word's marks.
    return [word for word in unknown if not known.issuperset(_RUN.findall(word) or [word])]


def unseen_words(tokenizer: Any, prompts: Sequence[str]) -> str:
    """A sentence on the words of prompts that no training caption has, with the nearest that one has.

    Returns:
        The sentence; empty where there are none, and where the training captions' words are not known.
    """
    words = new_words(tokenizer, prompts)
    if not words:
        return ""
    kept = tokenizer.init_kwargs[KEY]
    examples = ", ".join(_with_nearest(word, kept) for word in words[:_EXAMPLES])
    more = f" and {len(words) - _EXAMPLES:,} more" if len(words) > _EXAMPLES else ""
    told = "no training caption of this checkpoint has these words"
    if len(_split(kept)) == MOST:
        told = f"these words are not among the {MOST:,} most frequent of this checkpoint's training captions"
    return f"{told}: {examples}{more}"


@lru_cache(maxsize=8)
def _split(kept: str) -> frozenset[str]:
    return frozenset(kept.split())


@lru_cache(maxsize=1024)
def _with_nearest(word: str, kept: str) -> str:
    nearest = difflib.get_close_matches(word, kept.split(), n=1)
    return shown(word) + (f" (nearest: {nearest[0]!r})" if nearest else "")
