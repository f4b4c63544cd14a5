"""Conditions: what a network is told beside the sample and the noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Annotated, Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import a_kind_of, check_that, shown
from guided_diffusers.core.declared import Declared, Within, read

MAX_CONTEXT = 65_536
_CONTEXT = Annotated[int, Within(2, MAX_CONTEXT)]
_NO_NULL = (
    "this Condition has no negative, and guidance asks for the null condition: give "
    "Condition(positive, negative)"
)
_TOKENIZING = Lock()
"""One thread at a time: a fast tokenizer keeps the padding of a call, and refuses two at once."""
_AT_ONCE = 10_000  # texts, so that memory does not grow with a data set


@dataclass(frozen=True, eq=False)
class Condition(Declared):
    """The keyword arguments of a network, with and without the condition.

    Args:
        positive: Keyword arguments, such as `{"encoder_hidden_states": (batch, length, width)}`. Tensors have
            the batch first; nested mappings are allowed; anything that is not a tensor must be the same in
            `negative`.
        negative: The same keys for the null condition (an empty or a negative prompt, the null class).
    """

    positive: Mapping[str, Any]
    negative: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check both, and make the null: one object, so that a step asks for it once."""
        if isinstance(self.negative, Mapping):
            vars(self)["null"] = Condition(self.negative)
        super().__post_init__()

    @cached_property
    def null(self) -> Condition:
        """The condition that carries `negative`; ValueError where there is none."""
        raise ValueError(_NO_NULL)


@dataclass(frozen=True, eq=False)
class ClassCondition(Condition):
    """Classes, for a classifier and for the denoiser.

    Args:
        positive: The denoiser's arguments: `{"class_labels": (batch,)}` where it knows classes, else `{}`.
        negative: The same of the null class, where the denoiser has one.
        labels: The classes as a classifier's `log_prob` takes them, `(batch,)` int64.
    """

    labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TextCondition(Condition):
    """Texts, for a noise-aware CLIP; and what the denoiser is told, which may be nothing.

    Args:
        positive: The denoiser's arguments: `{}` of an unconditional one.
        negative: The same of its null condition, where it has one.
        text_embeds: What each sample is to show, `(batch, width)`.
        contrast_embeds: Other texts, `(texts, width)`: what it is to show rather than these.
        contrast_mask: Which of them count for which sample, `(batch, texts)` bool; None is all of them.
    """

    text_embeds: Tensor | None = None
    contrast_embeds: Tensor | None = None
    contrast_mask: Tensor | None = None


def class_condition(labels: Tensor, known: bool = True, null_class: int | None = None) -> ClassCondition:
    """The condition that classes are.

    Args:
        labels: `(batch,)` int64.
        known: The denoiser is class-conditional; one that is not gets no arguments.
        null_class: The index by which the denoiser was trained to mean no class (by convention the number of
            classes: one embedding more); None where it has none.

    Returns:
        A ClassCondition; its `.null` raises ValueError where there is no null class.
    """
    if not known:
        return ClassCondition({}, labels=labels)
    null = None if null_class is None else {"class_labels": torch.full_like(labels, null_class)}
    return ClassCondition({"class_labels": labels}, null, labels=labels)


def check_text(name: str, prompt: Any) -> None:
    """Raise ValueError for what no tokenizer reads: no string, or one with half of a surrogate pair."""
    if not isinstance(prompt, str):
        raise ValueError(f"{name} is {a_kind_of(prompt)}; allowed: a string")
    whole = not any("\ud800" <= letter <= "\udfff" for letter in prompt)
    check_that(whole, name, prompt, "Unicode text without a lone surrogate")


def context_of(tokenizer: Any, max_length: int | None = None) -> int:
    """How many tokens prompts are padded and cut to: `max_length`, or the tokenizer's own context.

    Raises:
        ValueError: Neither is a length that a text encoder has.
    """
    given = tokenizer.model_max_length if max_length is None else max_length
    name = "the tokenizer's model_max_length" if max_length is None else "max_length"
    return read(name, given, _CONTEXT)


def words_beyond(tokenizer: Any, prompt: str, max_length: int | None = None) -> str:
    """The end of a prompt that a text encoder's context does not hold.

    Args:
        tokenizer: A tokenizer of transformers, such as `CLIPTokenizer`.
        prompt: One prompt.
        max_length: The context length in tokens, special tokens included; by default the tokenizer's.

    Returns:
        The words that fall off, empty where none do.
    """
    max_length = context_of(tokenizer, max_length)
    check_text("prompt", prompt)
    with _TOKENIZING:
        ids = tokenizer(prompt, truncation=False, add_special_tokens=True, verbose=False).input_ids
    if len(ids) <= max_length:
        return ""
    end = int(ids[-1] in tokenizer.all_special_ids)  # the end mark stays where words fall off
    return tokenizer.decode(ids[max_length - end : len(ids) - end]).strip()


def cut_texts(tokenizer: Any, texts: Sequence[str], max_length: int | None = None) -> str:
    """A sentence on the texts that a text encoder's context does not hold, with one of them as an example.

    Args:
        tokenizer: A tokenizer of transformers.
        texts: Prompts or captions; equal ones count once.
        max_length: As of `words_beyond`.

    Returns:
        The sentence; empty where every text fits.
    """
    length = context_of(tokenizer) if max_length is None else max_length
    different = list(dict.fromkeys(texts))
    cut: list[str] = []
    for start in range(0, len(different), _AT_ONCE):
        part = different[start : start + _AT_ONCE]
        with _TOKENIZING:
            ids = tokenizer(part, truncation=False, verbose=False).input_ids
        cut += [text for text, its in zip(part, ids, strict=True) if len(its) > length]
    if not cut:
        return ""
    more = f" ({len(cut):,} of {len(different):,} texts are longer)" if len(different) > 1 else ""
    lost = shown(words_beyond(tokenizer, cut[0], length))
    return f"the text encoder reads {length} tokens; of {shown(cut[0])} it does not see: {lost}{more}"


def tokenize(tokenizer: Any, prompts: Sequence[str], max_length: int | None = None) -> tuple[Tensor, Tensor]:
    """Prompts to token ids of one length, padded and cut to the context.

    Args:
        tokenizer: A tokenizer of transformers.
        prompts: The prompts.
        max_length: The context length in tokens; by default the tokenizer's.

    Returns:
        Token ids and attention mask, both `(len(prompts), max_length)`, int64.
    """
    several = isinstance(prompts, Sequence) and not isinstance(prompts, str) and prompts
    check_that(several, "prompts", prompts, "a list of at least one string")
    for index, prompt in enumerate(prompts):
        check_text(f"prompts[{index}]", prompt)
    return token_ids(tokenizer, prompts, context_of(tokenizer, max_length))


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """`tokenize` of what has been checked: token ids and attention mask, `(len(prompts), length)`."""
    with _TOKENIZING:
        tokens = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
    return tokens.input_ids, tokens.attention_mask


def sees_padding(text_encoder: Any) -> bool:
    """Whether a text encoder is not told which tokens are padding.

    CLIP's is not, as in Stable Diffusion; any other is where its configuration says `use_attention_mask`,
    which StableDiffusionPipeline reads too.
    """
    return not getattr(text_encoder.config, "use_attention_mask", False)


def encode_text(text_encoder: Any, ids: Tensor, mask: Tensor | None, clip_skip: int | None = None) -> Tensor:
    """What a denoiser is told of texts: the last hidden states of a text encoder.

    Args:
        text_encoder: Any of transformers' whose output has `last_hidden_state`.
        ids: Token ids, `(texts, length)`.
        mask: 1 for tokens and 0 for padding, `(texts, length)`; not used where the encoder sees padding.
        clip_skip: Layers to leave out at the end, of a CLIPTextModel alone.

    Returns:
        `(texts, length, width)`.
    """
    arguments = {"attention_mask": None if sees_padding(text_encoder) else mask}
    if not clip_skip:
        output = text_encoder(ids, **arguments)
        return output[0] if isinstance(output, tuple) else output.last_hidden_state
    hidden = text_encoder(ids, output_hidden_states=True, **arguments).hidden_states
    return final_norm(text_encoder)(hidden[-(clip_skip + 1)])


def final_norm(text_encoder: Any) -> Any:
    """The normalisation after a CLIPTextModel's last layer; None of a text encoder that has no such."""
    inner = getattr(text_encoder, "text_model", text_encoder)
    return getattr(inner, "final_layer_norm", None)
