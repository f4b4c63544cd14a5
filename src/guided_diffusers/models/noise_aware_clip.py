"""CLIP of noised images: how well a text goes with x_t, at every noise level.

A CLIPTextModelWithProjection embeds texts, and the NoiseAwareClassifier's network, its logits taken for an
embedding, noised pixels or latents at a timestep. With both of length 1 their similarity is

    s(x_t, c) = tau <image(x_t, t), text(c)>.

Trained by the symmetric contrastive loss on x_t, one distribution of levels for all, s tends to

    s(x_t, c) = log p(x_t, c | t) / (p(x_t | t) p(c)) + const,

for the softmax over texts makes s equal to log p(c | x_t) - log p(c) up to a function of x_t, and that over
images up to a function of c. So grad_x s = grad_x log p(c | x_t), and the similarity itself is a `log_prob`
of classifier guidance: log p(c | x_t) up to what does not depend on x_t, as in CLIP-guided GLIDE. Bayes' rule
is at scale 1, as for a classifier.

With texts to contrast with, `log_prob` is instead

    log exp s(x_t, c) / (exp s(x_t, c) + sum_i exp s(x_t, c_i)),

log p(c | x_t, one of these) if all are equally likely beforehand: a normalised classifier, in which an error
of s that is the same for all texts, a function of x_t, drops out.

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
        (arXiv:2103.00020).
    Nichol et al., "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion
        Models" (arXiv:2112.10741), section 4: noised CLIP.
    van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748),
        section 2.3: what the loss estimates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from guided_diffusers.core.checks import check_int, check_that
from guided_diffusers.core.condition import TextCondition
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.core.process import Process
from guided_diffusers.models.noise_aware_classifier import NoiseAwareClassifier
from guided_diffusers.models.process import TrainedProcessMixin
from guided_diffusers.models.safe import SafeWeightsMixin

_NOT_OF_THE_TEXT = ("transformers_version", "model_type", "projection_dim")


class NoiseAwareCLIP(TrainedProcessMixin, SafeWeightsMixin, ModelMixin, ConfigMixin):
    """Similarity of texts with noised pixels or latents.

    Args:
        text_config: Arguments of CLIPTextConfig, as `text_config_for(tokenizer).to_diff_dict()` gives them.
        image_config: Arguments of NoiseAwareClassifier but `num_classes`, `id2label` and `process`.
        projection_dim: Of the space in which texts and images meet.
        logit_scale_init_value: log tau at the start.
        process: What it was trained on, as `schedulers.describe_process(scheduler)` gives it;
            `check_scheduler` compares it. None is unknown.

    Raises:
        ValueError: A value that is not allowed.
    """

    called: ClassVar[str] = "clip"
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm", "embeddings"]

    @register_to_config
    def __init__(
        self,
        text_config: Mapping[str, Any],
        image_config: Mapping[str, Any],
        projection_dim: int = 64,
        logit_scale_init_value: float = math.log(1 / 0.07),
        process: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        taken = {"num_classes", "id2label", "process"} & set(image_config)
        allowed = "without num_classes, id2label and process, which are not of the network alone"
        check_that(not taken, "image_config", image_config, allowed)
        check_int("projection_dim", projection_dim, 1)
        if process is not None:
            Process.from_config(process)
        text_config = {name: value for name, value in text_config.items() if name not in _NOT_OF_THE_TEXT}
        self.register_to_config(text_config=text_config)
        self.text_encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(**text_config, projection_dim=projection_dim)
        )
        self.image_encoder = NoiseAwareClassifier(**image_config, num_classes=projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale_init_value)))

    def forward(self, sample: Tensor, timestep: Tensor | float, input_ids: Tensor) -> Tensor:
        """Similarities of noised samples with texts.

        Args:
            sample: `input_scale * x_t`, (batch, in_channels, height, width).
            timestep: As the process has it, () or (batch,).
            input_ids: The texts' tokens, (texts, length), padded to the encoder's context.

        Returns:
            tau times the cosine, (batch, texts), float32.

        Raises:
            ValueError: What the image encoder refuses.
        """
        images = normalize(at_least_float32(self.image_encoder(sample, timestep)), dim=1)
        return self.temperature * images @ self.encode_text(input_ids).T

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Texts of tokens (texts, length) as directions: (texts, projection_dim) of length 1, float32."""
        return normalize(at_least_float32(self.text_encoder(input_ids).text_embeds), dim=1)

    def encode_image(self, sample: Tensor, level: NoiseLevel) -> Tensor:
        """Images x_t, unscaled, (batch, ...), as directions: (batch, projection_dim) of length 1, float32.

        Raises:
            ValueError: A level without a timestep, or a sample that the image encoder refuses.
        """
        return normalize(self.image_encoder.answers(sample, level), dim=1)

    @property
    def temperature(self) -> Tensor:
        """The factor tau of cosines, 0-dim float32."""
        return at_least_float32(self.logit_scale).exp()

    def similarity(self, sample: Tensor, level: NoiseLevel, text_embeds: Tensor) -> Tensor:
        """The logit `s(x_t, c)` of each sample with its text.

        Args:
            sample: x_t, unscaled, (batch, in_channels, height, width).
            level: Its noise level, 0-dim or (batch,).
            text_embeds: (batch, projection_dim), or (1, projection_dim) for all; of any length.

        Returns:
            (batch,), float32, also of a network in half precision, and so is its gradient.

        Raises:
            ValueError: Another number or width of texts, and what `encode_image` refuses.
        """
        texts = self._directions("text_embeds", text_embeds, sample, (1, len(sample)))
        return self.temperature * (self.encode_image(sample, level) * texts).sum(dim=1)

    def log_prob(self, sample: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        """Log p(text | x_t) in nats: what `ClassifierGuidance` takes as its `log_prob`.

        It is the similarity, which is log p up to what does not depend on x_t; or, with texts to contrast
        with, the logarithm of the text's share among them (see the module).

        Args:
            sample: x_t, unscaled, (batch, in_channels, height, width).
            level: Its noise level.
            condition: A `TextCondition`; or the texts' embeddings alone, as `similarity` takes them.

        Returns:
            (batch,), float32.

        Raises:
            ValueError: A condition without text, and what `similarity` refuses.
        """
        if isinstance(condition, Tensor):
            condition = TextCondition({}, text_embeds=condition)
        has_text = getattr(condition, "text_embeds", None) is not None
        check_that(has_text, "condition", condition, "a TextCondition with text_embeds")
        texts = self._directions("text_embeds", condition.text_embeds, sample, (1, len(sample)))
        images = self.temperature * self.encode_image(sample, level)
        own = (images * texts).sum(dim=1)
        if condition.contrast_embeds is None:
            return own
        others = images @ self._directions("contrast_embeds", condition.contrast_embeds, sample).T
        if condition.contrast_mask is not None:
            others = others.masked_fill(~condition.contrast_mask.to(others.device), -math.inf)
        return own - torch.cat([own[:, None], others], dim=1).logsumexp(dim=1)

    def _directions(
        self, name: str, embeds: Tensor, sample: Tensor, counts: tuple[int, ...] | None = None
    ) -> Tensor:
        width = self.config.projection_dim
        fits = embeds.ndim == 2 and embeds.shape[1] == width and (counts is None or len(embeds) in counts)
        allowed = "texts" if counts is None else " or ".join(map(str, counts))
        check_that(fits, name, embeds, f"({allowed}, {width})")
        return normalize(at_least_float32(embeds.to(sample.device)), dim=1)
