"""Prompts to embeddings: the part of a pipeline that a text encoder and its tokenizer are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.utils import logging
from torch import Tensor

from guided_diffusers.core.checks import MAX_COUNT, a_kind_of, check_int
from guided_diffusers.core.condition import (
    Condition,
    check_text,
    context_of,
    cut_texts,
    encode_text,
    final_norm,
    token_ids,
)
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.adapters import lora_scaled
from guided_diffusers.store.caption_words import unseen_words

logger = logging.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What images are to show and what not: texts, or their embeddings.

    Args:
        prompt: One text or several; None with `prompt_embeds`.
        negative_prompt: One for all prompts, or one each; None is the empty text.
        prompt_embeds: `(prompts, length, width)`.
        negative_prompt_embeds: Likewise.
        width: Of the embeddings that the network attends to; None for any.

    Attributes:
        count: How many prompts there are.
        texts: The prompts, one each; None where embeddings are given.
        negatives: The negative prompts, one a prompt.

    Raises:
        ValueError: They are none, contradict each other, or are of another width.
    """

    prompt: str | Sequence[str] | None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    width: int | None = None
    count: int = field(init=False)
    texts: Sequence[str] | None = field(init=False)
    negatives: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        """Check them, and count."""
        for text, embeds in (("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")):
            asked, given = getattr(self, text), getattr(self, embeds)
            if given is not None:
                inputs.check_one_of(text, asked, embeds, given)
                inputs.check_embeds(embeds, given, self.width)
            elif asked is not None:
                check_prompts(text, asked)
            elif text == "prompt":
                raise ValueError("neither prompt nor prompt_embeds was given; give one of them")
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        count = len(self.prompt_embeds if texts is None else texts)  # type: ignore[arg-type]
        negative = self.negative_prompt or ""
        negatives = [negative] * count if isinstance(negative, str) else negative
        null = self.negative_prompt_embeds
        for name, several in (("negative_prompt", negatives), ("negative_prompt_embeds", null)):
            if several is not None and len(several) != count:
                raise ValueError(
                    f"{name} has {len(several)} entries for {count} prompts; allowed: one for each prompt"
                )
        if self.prompt_embeds is not None and null is not None and self.prompt_embeds.shape != null.shape:
            raise ValueError(
                f"prompt_embeds has shape {tuple(self.prompt_embeds.shape)} and negative_prompt_embeds "
                f"{tuple(null.shape)}; allowed: one shape"
            )
        for name, value in (("count", count), ("texts", texts), ("negatives", negatives)):
            object.__setattr__(self, name, value)


def check_prompts(name: str, value: Any) -> None:
    """Raise ValueError where `value` is neither a string nor a non-empty list of strings.

    Any text will do, of any length and script; it is a string that is no text, because half of a pair of
    surrogates is missing, that no tokenizer can read.
    """
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"{name} is {a_kind_of(value)}; allowed: a string or a list of strings")
    prompts = {name: value} if isinstance(value, str) else {f"{name}[{i}]": p for i, p in enumerate(value)}
    if not prompts:
        raise ValueError(f"{name} is an empty list; allowed: a string or a list of at least one")
    if len(prompts) > MAX_COUNT:
        raise ValueError(f"{name} has {len(prompts)} prompts; allowed: up to {MAX_COUNT:,}")
    for place, prompt in prompts.items():
        if not isinstance(prompt, str) or not prompt.isascii():
            check_text(place, prompt)


@dataclass(frozen=True)
class PromptEncoder:
    """A text encoder with its tokenizer, as Stable Diffusion asks them: a part that pipelines hold.

    Attributes:
        tokenizer: None where embeddings are given.
        text_encoder: Likewise.
        lora_scale: How much the text encoder's LoRA layers count, where it has some; None is whole.
    """

    tokenizer: Any
    text_encoder: Any
    lora_scale: float | None = None

    def __call__(
        self,
        prompts: Prompts,
        device: torch.device,
        dtype: torch.dtype,
        times: int = 1,
        with_null: bool = True,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompts and, with the null, of negative prompts.

        A warning says what the network does not see of the texts, or has never seen.

        Args:
            prompts: Those whose embeddings are given keep them.
            device: Where the text encoder is.
            dtype: The network's.
            times: How often each comes, one after another.
            with_null: Whether the null is wanted.
            clip_skip: Layers of a CLIP text encoder to leave out at its end, for the prompts.

        Returns:
            Two tensors `(prompts * times, length, width)`; the second is None without the null.

        Raises:
            ValueError: A text without a text encoder or a tokenizer.
        """
        embeds, null = prompts.prompt_embeds, prompts.negative_prompt_embeds if with_null else None
        asked: dict[str, Sequence[str]] = {}
        if prompts.texts is not None:
            asked["prompt"] = prompts.texts
        if with_null and null is None:
            asked["negative_prompt"] = prompts.negatives
        if asked:
            encoded = self._encoded(asked, device, None if embeds is None else embeds.shape[1], clip_skip)
            embeds, null = encoded.get("prompt", embeds), encoded.get("negative_prompt", null)
        embeds, null = (
            None if each is None else each.to(device, dtype).repeat_interleave(times, dim=0)
            for each in (embeds, null)
        )
        return embeds, null  # type: ignore[return-value]  # of the prompts there always are some

    def _encoded(
        self,
        asked: Mapping[str, Sequence[str]],
        device: torch.device,
        length: int | None,
        clip_skip: int | None,
    ) -> dict[str, Tensor]:
        """The embeddings of texts by the name of their argument, of so many tokens; None: of the context."""
        if self.text_encoder is None or self.tokenizer is None:
            self._refuse(next(iter(asked)))
        if set(self.tokenizer.added_tokens_encoder).difference(self.tokenizer.all_special_tokens):
            whole = TextualInversionLoaderMixin().maybe_convert_prompt  # a word of several vectors is several
            asked = {name: whole(list(several), self.tokenizer) for name, several in asked.items()}
        texts = list(dict.fromkeys(text for several in asked.values() for text in several))
        warn_of_words(self.tokenizer, texts)
        length = context_of(self.tokenizer) if length is None else length
        ids, mask = token_ids(self.tokenizer, texts, length)
        if mask.all(dim=1).any():
            warn_of_cut(self.tokenizer, texts, length)
        ids, mask = ids.to(device), mask.to(device)
        encoded = {}
        scaled = nullcontext() if self.lora_scale is None else lora_scaled(self.text_encoder, self.lora_scale)
        with scaled:
            for name, several in asked.items():
                own = list(dict.fromkeys(several))  # equal ones are encoded once
                rows = [texts.index(text) for text in own]
                skip = clip_skip if name == "prompt" else None
                embeds = encode_text(self.text_encoder, ids[rows], mask[rows], skip)
                encoded[name] = embeds[[own.index(text) for text in several]]
        return encoded

    def condition(
        self,
        prompts: Prompts,
        device: torch.device,
        dtype: torch.dtype,
        times: int,
        with_null: bool,
        clip_skip: int | None,
        arguments: Mapping[str, Any],
        null_arguments: Mapping[str, Any],
    ) -> PromptCondition:
        """What a network is told of prompts, beside other arguments, and those that are others in the null.

        Without the null it is encoded when a term first asks for it.
        """
        embeds, null = self(prompts, device, dtype, times, with_null, clip_skip)

        def encode_null() -> Tensor:
            encoded = replace(prompts, prompt=None, prompt_embeds=embeds[::times])
            return self(encoded, device, dtype, times)[1]  # type: ignore[return-value]

        positive = {"encoder_hidden_states": embeds, **arguments}
        negative = None if null is None else {**positive, **null_arguments, "encoder_hidden_states": null}
        return PromptCondition(positive, negative, encode_null, null_arguments)

    def _refuse(self, name: str) -> None:
        """Raise ValueError: there is nothing to encode a text with."""
        missing = "text_encoder" if self.text_encoder is None else "tokenizer"
        otherwise = ", or guidance_scale=1" if name == "negative_prompt" else ""
        raise ValueError(
            f"{name} is to be encoded, and the pipeline has no {missing}; give {name}_embeds{otherwise}"
        )

    def check_clip_skip(self, clip_skip: Any) -> None:
        """Raise ValueError where so many layers cannot be left out; there may be no text encoder."""
        config = getattr(self.text_encoder, "config", None)
        check_int("clip_skip", clip_skip, 0, getattr(config, "num_hidden_layers", MAX_COUNT))
        if clip_skip and config is not None and final_norm(self.text_encoder) is None:
            raise ValueError(
                f"clip_skip is {clip_skip}, which is of CLIP's text encoders, and text_encoder is "
                f"{a_kind_of(self.text_encoder)}; allowed: None"
            )


def warn_of_words(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Log a warning of words that none of the training captions has, where the checkpoint knows them."""
    if told := unseen_words(tokenizer, prompts):
        logger.warning(told)


def warn_of_cut(tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Log a warning of the end of a prompt which is longer than the text encoder's context."""
    if told := cut_texts(tokenizer, prompts, length):
        logger.warning(told)


@dataclass(frozen=True, eq=False)
class PromptCondition(Condition):
    """What a network is told of prompts; the null's embeddings are encoded when a term first asks for them.

    Args:
        positive: The network's arguments, `encoder_hidden_states` `(images, length, width)` among them.
        negative: The same of the null, where its embeddings are known.
        encode_null: What gives them where they are not.
        null_arguments: Other arguments of the null than of the prompts.
    """

    encode_null: Callable[[], Tensor] | None = None
    null_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def embeds(self) -> Tensor:
        """The prompts' embeddings."""
        return self.positive["encoder_hidden_states"]

    @property
    def known_null_embeds(self) -> Tensor | None:
        """The null's embeddings, where they are known already."""
        return self.null.positive["encoder_hidden_states"] if "null" in vars(self) else None

    @cached_property
    def null(self) -> Condition:
        """The condition of the null's embeddings."""
        return Condition(self._null_of(self.encode_null()))

    def with_embeds(self, embeds: Tensor) -> PromptCondition:
        """The same with other embeddings of the prompts."""
        null = self.known_null_embeds
        changed = replace(self, positive={**self.positive, "encoder_hidden_states": embeds}, negative=None)
        return changed if null is None else changed.with_null(null)

    def with_null(self, embeds: Tensor) -> PromptCondition:
        """The same with other embeddings of the null."""
        return replace(self, negative=self._null_of(embeds))

    def _null_of(self, embeds: Tensor) -> dict[str, Any]:
        return {**self.positive, **self.null_arguments, "encoder_hidden_states": embeds}
