"""The text encoder and the tokenizer of a training run: new ones of the captions, or those of a folder.

A folder's configuration says which class its text encoder is: CLIP's, a T5, or any other of transformers that
answers token ids with `last_hidden_state`. One that is not CLIP's is not shown the padding of a caption
(`use_attention_mask` in its configuration, which pipelines read too); the denoiser attends to the hidden
states of all tokens, padding included, as Stable Diffusion's and DeepFloyd IF's do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from guided_diffusers.core.condition import MAX_CONTEXT, cut_texts, encode_text, tokenize
from guided_diffusers.core.declared import Declared
from guided_diffusers.models.transformers_models import load_fitting, load_tokenizer
from guided_diffusers.store.caption_words import keep_words, known_words, new_words
from guided_diffusers.store.checkpoints import pipeline_source
from guided_diffusers.store.safety import refused_in_one_line
from guided_diffusers.training.data.captions import text_config_for, train_tokenizer
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.tasks.kept import images_seen, kept_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextConfig(Declared):
    """The text encoder: one of our own or pretrained, trained with the denoiser or frozen."""

    encoder: Literal["joint", "frozen"] = option("joint", "trained with the denoiser, or frozen")
    pretrained: str | None = option(
        None, "folder or Hub id of a text encoder: CLIP, T5, ...; null: a new one"
    )
    subfolders: bool = option(True, "it is a pipeline's: text_encoder/ and tokenizer/ inside")
    component: str = option("text_encoder", "which of a pipeline's, such as text_encoder_3 and tokenizer_3")
    sources: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "others of a transformer's text encoders by their names: text_encoder_3: folder or Hub id"
        },
    )
    sequence_length: int | None = option(
        None, "of a transformer's texts, in tokens: max_sequence_length of a call; null: a plain call's"
    )
    vocabulary_size: int = option(1024, "of a new tokenizer, trained on the captions: an upper limit")
    context_length: int = option(77, "in tokens, with special ones; of a new one, or where it has no limit")
    model: dict[str, Any] = arguments("CLIPTextConfig's arguments", CLIPTextConfig)

    def __post_init__(self) -> None:
        """Check the component's name."""
        super().__post_init__()
        if not self.component.startswith("text_encoder"):
            raise ValueError(
                f"text.component is {self.component!r}; allowed: text_encoder, text_encoder_2 ..."
            )


def check_frozen(config: TextConfig) -> None:
    """Raise ValueError where there is nothing to freeze."""
    if config.encoder == "frozen" and config.pretrained is None:
        raise ValueError("text.encoder is 'frozen': name a trained one in text.pretrained, or use 'joint'")


def make_text(
    config: TextConfig, captions: list[str], training: TrainingConfig, base: bool = False
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the text encoder, loaded or new; the tokenizer is the run's own when that goes on.

    Args:
        config: which.
        captions: of the data.
        training: the engine's configuration: where the run is, and how far it goes.
        base: the denoiser is a trained one: it knows the words that the tokenizer of `text.pretrained` says.
    """
    check_frozen(config)
    if config.pretrained is None:
        tokenizer = make_tokenizer(config, captions, training)
        return tokenizer, CLIPTextModel(text_config_for(tokenizer, **config.model))
    tokenizer, encoder = load_text(config)
    return own_tokenizer(tokenizer, config.pretrained, captions, training, base), encoder


def own_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    pretrained: str,
    captions: list[str],
    training: TrainingConfig,
    base: bool,
) -> PreTrainedTokenizerBase:
    """The run's own tokenizer when it goes on, which must be the pretrained one; and else that.

    Args:
        tokenizer: of `pretrained`.
        pretrained: a folder or a Hub repository.
        captions: of the data.
        training: the engine's configuration.
        base: as of `make_text`.

    Raises:
        ValueError: the run was begun with another one.
    """
    own = kept_tokenizer(training.output_dir)
    if own is not None and own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"pretrained is {pretrained!r}, whose tokenizer is not the one that the run in "
            f"{training.output_dir} was begun with: name that one, or begin in another output_dir"
        )
    tell_captions(own or tokenizer, captions, training, own is not None, base)
    return own or tokenizer


def make_tokenizer(config: Any, captions: list[str], training: TrainingConfig) -> PreTrainedTokenizerBase:
    """The run's own tokenizer when it goes on, and else a new one of the captions.

    Args:
        config: has `vocabulary_size` and `context_length`.
        captions: of the data.
        training: the engine's configuration.
    """
    own = kept_tokenizer(training.output_dir)
    tokenizer = own or train_tokenizer(captions, config.vocabulary_size, config.context_length)
    tell_captions(tokenizer, captions, training, own is not None)
    return tokenizer


def tell_captions(
    tokenizer: PreTrainedTokenizerBase,
    captions: list[str],
    training: TrainingConfig,
    goes_on: bool,
    base: bool = False,
) -> None:
    """Log what captions lose and which of their words a run does not know; keep the words in the tokenizer.

    Args:
        tokenizer: the run's; its configuration gets the words.
        captions: of the data.
        training: the engine's configuration.
        goes_on: the run has begun with this tokenizer, and perhaps with other captions.
        base: as of `make_text`.
    """
    if told := cut_texts(tokenizer, captions):
        logger.warning("captions are longer than the context: %s", told)
    if not goes_on and not base:
        keep_words(tokenizer, captions)
    elif (known := known_words(tokenizer)) is not None:
        if goes_on and (new := new_words(tokenizer, captions)):
            logger.warning(
                "captions have %d words that are new to this run, whose tokenizer stays as it was: %s",
                len(new),
                ", ".join(map(repr, new[:3])) + (" ..." if len(new) > 3 else ""),
            )
        ends = images_seen(training.output_dir) >= training.num_images
        keep_words(tokenizer, [] if ends else captions, known)


def load_text(config: TextConfig) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the text encoder of `text.pretrained`."""
    names = (config.component.replace("text_encoder", "tokenizer"), config.component)
    names = names if config.subfolders else ("", "")
    name = pipeline_source(config.pretrained)
    folder = Path(name)
    if folder.is_dir() and not (folder / names[1] / "config.json").is_file():
        raise ValueError(
            f"text.pretrained is {config.pretrained!r}, which has no {Path(names[1], 'config.json')}: give a "
            "pipeline's folder with text.subfolders true, or a text encoder's own with false"
        )
    encoder = load_text_encoder(name, names[1])
    tokenizer = load_tokenizer(name, names[0])
    settle_context(tokenizer, encoder.config, config.context_length)
    check_pair(tokenizer, encoder, config.pretrained)
    return tokenizer, encoder


def load_text_encoder(name: str, subfolder: str = "") -> PreTrainedModel:
    """The text encoder of a folder or a Hub repository, float32, of the class that its configuration names.

    Of a whole model (a CLIPModel, a T5ForConditionalGeneration) it is the encoder of texts.

    Raises:
        OSError: There is none, transformers has no such class, or the weights do not fit it; in one line.
    """
    where = f"{name}/{subfolder}".rstrip("/")
    with refused_in_one_line(where):
        config = transformers.AutoConfig.from_pretrained(name, subfolder=subfolder)
    cls = _encoder_class(config)
    if cls is None:
        named = ", ".join(config.architectures or ["no class"])
        raise OSError(
            f"{where} is a {config.model_type!r} ({named}), of which transformers has no text encoder; "
            "allowed: one whose output has last_hidden_state, such as CLIPTextModel or T5EncoderModel"
        )
    encoder = load_fitting(cls, name, subfolder=subfolder, dtype=torch.float32, use_safetensors=True)
    trained_with_padding = encoder.config.model_type.startswith(("clip", "siglip"))
    if not trained_with_padding and not hasattr(encoder.config, "use_attention_mask"):
        encoder.config.use_attention_mask = True
    return encoder


def settle_context(tokenizer: PreTrainedTokenizerBase, config: Any, otherwise: int) -> None:
    """Give a tokenizer a length that its text encoder has: to its texts are padded and cut.

    Args:
        tokenizer: Its `model_max_length` is set where it is none (1e30) or more than the encoder's positions.
        config: The text encoder's configuration.
        otherwise: The length where the tokenizer has none.
    """
    own, positions = tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)
    length = own if 2 <= own <= MAX_CONTEXT else otherwise
    tokenizer.model_max_length = min(length, positions or length)
    if tokenizer.model_max_length != own:
        length = tokenizer.model_max_length
        logger.info("texts are padded and cut to %d tokens; the tokenizer says %g", length, own)


def check_pair(tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, name: str) -> None:
    """Raise ValueError where a text encoder does not answer its tokenizer's ids with `last_hidden_state`."""
    kind = type(encoder).__name__
    try:
        known = encoder.get_input_embeddings().num_embeddings
        with torch.no_grad():
            shape = encode_text(encoder, *tokenize(tokenizer, [""])).shape
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: its {kind} cannot encode a text alone: {reason}") from error
    if len(tokenizer) > known:
        raise ValueError(f"{name}: its tokenizer has {len(tokenizer)} tokens, and its {kind} knows {known}")
    expected = (1, tokenizer.model_max_length, encoder.config.hidden_size)
    if shape != expected:
        raise ValueError(f"{name}: its {kind} encodes a text as {tuple(shape)}; allowed: {expected}")


def _encoder_class(config: Any) -> type[PreTrainedModel] | None:
    """The class of a configuration's text encoder; None where there is none."""
    named = (config.architectures or [""])[0]
    if named.endswith(("EncoderModel", "TextModel", "TextModelWithProjection")):
        return getattr(transformers, named, None)
    if config.model_type == "clip":
        return CLIPTextModel
    cls = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    if cls is None and not config.is_encoder_decoder:
        cls = transformers.MODEL_MAPPING.get(type(config), None)
    return cls[0] if isinstance(cls, tuple) else cls
