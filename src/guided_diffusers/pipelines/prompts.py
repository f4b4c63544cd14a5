"""Prompts to embeddings, with Stable Diffusion's signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from guided_diffusers.core.checks import MAX_COUNT, a_kind_of, check_bool, check_int
from guided_diffusers.core.condition import cut_texts, encode_text, final_norm, tokenize
from guided_diffusers.core.denoiser import dtype_of
from guided_diffusers.pipelines import inputs
from guided_diffusers.store.caption_words import unseen_words

logger = logging.get_logger(__name__)


def warn_of_prompts(tokenizer: Any, prompts: Sequence[str], max_length: int | None = None) -> None:
    """Log a warning of what a network does not see in prompts, or has never seen.

    That is the end of a prompt which is longer than the text encoder's context, and a word which none of the
    training captions has, where the checkpoint knows them.
    """
    for told in (cut_texts(tokenizer, prompts, max_length), unseen_words(tokenizer, prompts)):
        if told:
            logger.warning(told)


class PromptEncoding:
    """A pipeline's `encode_prompt`; it uses the components `tokenizer`, `text_encoder` and `unet`."""

    tokenizer: Any
    text_encoder: Any
    unet: Any

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode prompts as Stable Diffusion does.

        Args:
            prompt: One prompt or several; None with `prompt_embeds`.
            device: Where the embeddings go.
            num_images_per_prompt: How often each embedding is repeated.
            do_classifier_free_guidance: Whether to encode the negative prompt too.
            negative_prompt: One for all prompts, or one each; empty by default.
            prompt_embeds: `(prompts, length, width)`, instead of `prompt`.
            negative_prompt_embeds: Likewise, instead of `negative_prompt`.
            lora_scale: Part of the signature; this pipeline loads no LoRA, so anything but None raises.
            clip_skip: Layers of the text encoder to leave out at its end.

        Returns:
            Two tensors `(prompts * num_images_per_prompt, length, width)` in the network's dtype; the second
            is None without classifier-free guidance.

        Raises:
            ValueError: A `lora_scale`, prompts that are none, more layers to leave out than there are, or as
                many negative prompts as do not fit the prompts.
        """
        if lora_scale is not None:
            raise ValueError("lora_scale was given, and this pipeline loads no LoRA: leave it out")
        check_bool("do_classifier_free_guidance", do_classifier_free_guidance)
        self._check_encoding(prompt, num_images_per_prompt, negative_prompt, clip_skip)
        if prompt_embeds is None:
            inputs.check_prompts("prompt", prompt)
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            self._check_encodes("prompt")
            prompt_embeds = self._embed(prompts, device, clip_skip=clip_skip)
        inputs.check_embeds("prompt_embeds", prompt_embeds, None)
        inputs.check_embeds("negative_prompt_embeds", negative_prompt_embeds, None)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative = "" if negative_prompt is None else negative_prompt
            negatives = [negative] * len(prompt_embeds) if isinstance(negative, str) else list(negative)
            if len(negatives) != len(prompt_embeds):
                raise ValueError(
                    f"negative_prompt has {len(negatives)} entries for {len(prompt_embeds)} prompts; "
                    "allowed: one for all, or one a prompt"
                )
            self._check_encodes("negative_prompt", ", or guidance_scale=1")
            negative_prompt_embeds = self._embed(negatives, device, prompt_embeds.shape[1])
        prompt_embeds = self._repeated(prompt_embeds, device, num_images_per_prompt)
        if do_classifier_free_guidance:
            negative_prompt_embeds = self._repeated(negative_prompt_embeds, device, num_images_per_prompt)
        else:
            negative_prompt_embeds = None
        return prompt_embeds, negative_prompt_embeds

    def _check_encoding(self, prompt: Any, count: Any, negative_prompt: Any, clip_skip: Any) -> None:
        inputs.check_count("num_images_per_prompt", count)
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if value is not None:
                inputs.check_prompts(name, value)
        if clip_skip is not None:
            config = getattr(self.text_encoder, "config", None)  # there may be embeddings and no text encoder
            check_int("clip_skip", clip_skip, 0, getattr(config, "num_hidden_layers", MAX_COUNT))
            if clip_skip and config is not None and final_norm(self.text_encoder) is None:
                raise ValueError(
                    f"clip_skip is {clip_skip}, which is of CLIP's text encoders, and text_encoder is "
                    f"{a_kind_of(self.text_encoder)}; allowed: None"
                )

    def _check_encodes(self, name: str, otherwise: str = "") -> None:
        """Raise ValueError where there is nothing to encode a prompt with."""
        missing = [part for part in ("text_encoder", "tokenizer") if getattr(self, part) is None]
        if missing:
            raise ValueError(
                f"{name} is to be encoded, and the pipeline has no {missing[0]}; give {name}_embeds"
                f"{otherwise}"
            )

    def _embed(
        self,
        prompts: list[str],
        device: torch.device,
        max_length: int | None = None,
        clip_skip: int | None = None,
    ) -> Tensor:
        unique = list(dict.fromkeys(prompts))
        ids, mask = tokenize(self.tokenizer, unique, max_length)
        warn_of_prompts(self.tokenizer, unique, max_length)
        embeds = encode_text(self.text_encoder, ids.to(device), mask.to(device), clip_skip)
        return embeds[[unique.index(prompt) for prompt in prompts]]

    def _repeated(self, embeds: Tensor, device: torch.device, times: int) -> Tensor:
        dtype = dtype_of(self.unet, embeds.dtype)
        return embeds.to(device, dtype).repeat_interleave(times, dim=0)
