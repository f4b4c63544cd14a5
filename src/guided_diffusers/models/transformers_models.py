"""Models of transformers, used only where their weights fit their class, and tokenizers that have words.

transformers fills whatever a checkpoint does not hold with random numbers and says so in a table of its log:
a T5's folder opened as a CLIPTextModel is a new CLIPTextModel. Of a folder without a tokenizer's files it
makes one that knows no word, to which all texts are alike. Here both are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.store.safety import refused_in_one_line


def load_fitting(cls: Any, name: str | Path, **arguments: Any) -> Any:
    """A model of transformers from a folder or a Hub repository.

    Args:
        cls: Its class.
        name: The folder or the repository.
        arguments: Of `cls.from_pretrained`.

    Raises:
        OSError: There is none, or its weights do not fit the class; in one line that names both.
    """
    where = "/".join(filter(None, (str(name), arguments.get("subfolder"))))
    with hub_errors(str(name)), refused_in_one_line(where), _quiet():
        model, told = cls.from_pretrained(name, output_loading_info=True, **arguments)
    _check(model, told, where)
    return model


def load_tokenizer(name: str | Path, subfolder: str = "") -> Any:
    """The tokenizer of a folder or a Hub repository, of the class that it names; OSError in one line."""
    from transformers import AutoTokenizer

    where = f"{name}/{subfolder}".rstrip("/")
    with refused_in_one_line(f"the tokenizer {where}"):
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder)
        check_vocabulary(tokenizer, where)
    return tokenizer


def check_vocabulary(tokenizer: Any, where: str) -> None:
    """Raise OSError for a tokenizer that knows no word, which transformers makes where files are missing."""
    words = set(tokenizer.get_vocab()).difference(tokenizer.all_special_tokens)
    if len(words) < 2:  # T5's knows the sign of a word's beginning
        raise OSError(f"{where} has a tokenizer without a vocabulary: the checkpoint is not whole")


def check_fitting(model: Any, folder: Path, where: str, variant: str | None = None) -> None:
    """Raise OSError where the files of a folder do not hold all weights of a model that was loaded from it.

    Args:
        model: Anything; what is no model of transformers passes, and so does a quantised one.
        folder: Its folder.
        where: What an error calls it.
        variant: Of the files, where there are such: else diffusers takes the plain ones.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or getattr(model.config, "quantization_config", None):
        return
    variant = variant if any(folder.glob(f"*.{variant}[.-]*")) else None
    with refused_in_one_line(where), _quiet():
        _, told = type(model).from_pretrained(
            folder, variant=variant, use_safetensors=True, device_map="meta", output_loading_info=True
        )
    _check(model, told, where)


def _check(model: Any, told: Mapping[str, Any], where: str) -> None:
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in told[kind] or ())
    if wrong or told.get("error_msgs"):
        holds = (getattr(model.config, "architectures", None) or ["model of no named class"])[0]
        reason = f"{len(wrong)} of its weights are not there, such as {wrong[0]}" if wrong else "they differ"
        raise OSError(
            f"{where} holds a {holds}, whose weights do not fit a {type(model).__name__} ({reason}): refused"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table of what does not fit, and its warning of another class."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
