"""Prompts to embeddings: the part of a pipeline that a text encoder and its tokenizer are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    Attributes:
        prompt: One text or several; None with `prompt_embeds`.
        negative_prompt: One for all prompts, or one each; None is the empty text.
        prompt_embeds: `(prompts, length, width)`.
        negative_prompt_embeds: Likewise.
    """

    prompt: str | Sequence[str] | None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None

    def __len__(self) -> int:
        """How many prompts there are."""
        if self.prompt is None:
            return len(self.prompt_embeds)
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def positives(self) -> Sequence[str]:
        """The prompts, one each."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def negatives(self) -> Sequence[str]:
        """The negative prompts, one a prompt."""
        text = self.negative_prompt or ""
        return [text] * len(self) if isinstance(text, str) else text

    def check(self, width: int | None = None) -> int:
        """How many there are; ValueError where they are none, contradict each other, or are too wide."""
        for text, embeds in (("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")):
            asked, given = getattr(self, text), getattr(self, embeds)
            if given is not None:
                inputs.check_one_of(text, asked, embeds, given)
                inputs.check_embeds(embeds, given, width)
            elif asked is not None:
                inputs.check_prompts(text, asked)
            elif text == "prompt":
                raise ValueError("neither prompt nor prompt_embeds was given; give one of them")
        self._check_as_many(count := len(self))
        return count

    def _check_as_many(self, count: int) -> None:
        """Raise ValueError where what images are not to show is of other prompts than what they are."""
        for name in ("negative_prompt", "negative_prompt_embeds"):
            several = getattr(self, name)
            if several is not None and not isinstance(several, str) and len(several) != count:
                raise ValueError(
                    f"{name} has {len(several)} entries for {count} prompts; allowed: one for each prompt"
                )
        embeds, null = self.prompt_embeds, self.negative_prompt_embeds
        if embeds is not None and null is not None and embeds.shape != null.shape:
            raise ValueError(
                f"prompt_embeds has shape {tuple(embeds.shape)} and negative_prompt_embeds "
                f"{tuple(null.shape)}; allowed: one shape"
            )


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
        with_null: bool = True,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompts and, with the null, of negative prompts: each `(prompts, length, width)`.

        A warning says what the network does not see of the texts, or has never seen.

        Args:
            prompts: Those whose embeddings are given keep them.
            device: Where the text encoder is.
            with_null: Whether the null is wanted.
            clip_skip: Layers of a CLIP text encoder to leave out at its end, for the prompts.

        Raises:
            ValueError: A text without a text encoder or a tokenizer.
        """
        embeds, null = prompts.prompt_embeds, prompts.negative_prompt_embeds if with_null else None
        asked: dict[str, Sequence[str]] = {}
        if embeds is None:
            asked["prompt"] = prompts.positives
        if with_null and null is None:
            asked["negative_prompt"] = prompts.negatives
        if not asked:
            return embeds, null
        if self.text_encoder is None or self.tokenizer is None:
            self._refuse(next(iter(asked)))
        length = context_of(self.tokenizer) if embeds is None else embeds.shape[1]
        if set(self.tokenizer.added_tokens_encoder).difference(self.tokenizer.all_special_tokens):
            whole = TextualInversionLoaderMixin().maybe_convert_prompt  # a word of several vectors is several
            asked = {name: whole(list(several), self.tokenizer) for name, several in asked.items()}
        texts = list(dict.fromkeys(text for several in asked.values() for text in several))
        ids, mask = (tokens.to(device) for tokens in token_ids(self.tokenizer, texts, length))
        warn_of_prompts(self.tokenizer, texts, length)
        for name, several in asked.items():
            own = list(dict.fromkeys(several))  # equal ones are encoded once
            rows = [texts.index(text) for text in own]
            skip = clip_skip if name == "prompt" else None
            with lora_scaled(self.text_encoder, self.lora_scale):
                encoded = encode_text(self.text_encoder, ids[rows], mask[rows], skip)
            encoded = encoded[[own.index(text) for text in several]]
            embeds, null = (encoded, null) if name == "prompt" else (embeds, encoded)
        return embeds, null

    def repeated(
        self,
        prompts: Prompts,
        device: torch.device,
        dtype: torch.dtype,
        times: int,
        with_null: bool = True,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The embeddings in a network's dtype, so many times each: `(prompts * times, length, width)`."""
        both = self(prompts, device, with_null, clip_skip)
        embeds, null = (
            None if each is None else each.to(device, dtype).repeat_interleave(times, dim=0) for each in both
        )
        return embeds, null

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
        embeds, null = self.repeated(prompts, device, dtype, times, with_null, clip_skip)

        def encode_null() -> Tensor:
            encoded = replace(prompts, prompt=None, prompt_embeds=embeds[::times])
            return self.repeated(encoded, device, dtype, times)[1]

        positive = {"encoder_hidden_states": embeds, **arguments}
        condition = PromptCondition(positive, None, encode_null, null_arguments)
        return condition if null is None else condition.with_null(null)

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


def warn_of_prompts(tokenizer: Any, prompts: Sequence[str], max_length: int | None = None) -> None:
    """Log a warning of what a network does not see in prompts, or has never seen.

    That is the end of a prompt which is longer than the text encoder's context, and a word which none of the
    training captions has, where the checkpoint knows them.
    """
    for told in (cut_texts(tokenizer, prompts, max_length), unseen_words(tokenizer, prompts)):
        if told:
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
        known = self.negative or (self.null.positive if "null" in vars(self) else {})
        return known.get("encoder_hidden_states")

    @cached_property
    def null(self) -> Condition:
        """The condition of the null's embeddings."""
        if self.negative is not None:
            return Condition(self.negative)
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
