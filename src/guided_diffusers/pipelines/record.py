"""What repeats an image, inside the image: a JSON document in a text chunk of the PNG.

The chunk's keyword is `KEY`. The document holds all that pixels depend on: the checkpoint and a fingerprint,
prompt, seed and index, steps, guidance as model_index.json stores it, the scheduler with its configuration,
and the batch in which the image was drawn. An image's noise is that of (seed, index) alone, so the rest of
its batch decides no more than how sums are rounded; but to repeat it to the bit, that is named too.

A document that is read is untrusted: it is checked value by value, it can name no class and no file but a
checkpoint, and what it says is compared with what it leads to (`differences`), never built from.
"""

from __future__ import annotations

import json
import math
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, PngImagePlugin

from guided_diffusers.core.declared import AtLeast, Whole, Within, read

KEY = "guided_diffusers"
"""The keyword of the PNG's text chunk that holds the JSON document."""

FORMAT = 1
MOST_STEPS = 10_000
MOST_IN_A_BATCH = 1024
_MOST_CHARACTERS = 4_000_000
_MOST_TERMS = 32


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """A call that drew images, and which of them is shown.

    Attributes:
        checkpoint: As it was given: the name of a shipped one, a folder or a Hub repository.
        fingerprint: "sha256:..." of a folder (`checkpoints.fingerprint`), "commit:..." of a repository.
        prompts: Of the call.
        negative_prompt: For all of them; None for none.
        seed: Of the noise.
        jobs: What was drawn, in order: the number of the prompt, and the index that selects the noise.
        batch_size: So many of them at once.
        position: Which of `jobs` the picture shows; None: all of them, as a grid.
        steps: Of the scheduler.
        guidance: As `Guidance.to_config` gives it.
        scheduler: The name by which it was chosen; None for the checkpoint's own.
        scheduler_class: Its class.
        scheduler_config: Its configuration as JSON values.
        made_with: Versions of the libraries, device and threads: what may change the last bit.
    """

    checkpoint: str
    fingerprint: str
    prompts: tuple[str, ...]
    negative_prompt: str | None
    seed: int
    jobs: tuple[tuple[int, int], ...]
    batch_size: int
    position: int | None
    steps: int
    guidance: list[dict[str, Any]]
    scheduler: str | None
    scheduler_class: str
    scheduler_config: dict[str, Any]
    made_with: dict[str, Any]

    def image(self, number: int) -> ImageRecord:
        """The record of image `number` of `jobs`: of its batch alone."""
        start = number - number % self.batch_size
        jobs = self.jobs[start : start + self.batch_size]
        used = sorted({prompt for prompt, _ in jobs})
        return replace(
            self,
            prompts=tuple(self.prompts[prompt] for prompt in used),
            jobs=tuple((used.index(prompt), index) for prompt, index in jobs),
            batch_size=len(jobs),
            position=number - start,
        )

    def to_dict(self) -> dict[str, Any]:
        """The document: JSON values."""
        shown = None if self.position is None else self.jobs[self.position]
        return {
            "format": FORMAT,
            "prompt": None if shown is None else self.prompts[shown[0]],
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "index": None if shown is None else shown[1],
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": {
                "name": self.scheduler,
                "class": self.scheduler_class,
                "config": self.scheduler_config,
            },
            "checkpoint": {"name": self.checkpoint, "fingerprint": self.fingerprint},
            "batch": {
                "prompts": list(self.prompts),
                "jobs": [list(job) for job in self.jobs],
                "size": self.batch_size,
                "position": self.position,
            },
            "made_with": self.made_with,
        }

    @classmethod
    def from_dict(cls, document: Any) -> ImageRecord:
        """The inverse of `to_dict`, of a document that nobody vouches for.

        Raises:
            ValueError: A value that is missing, unknown, of the wrong type, out of range or in contradiction
                to another; in one line that names it.
        """
        outer = _mapping(document, "the document", _KEYS)
        if outer["format"] != FORMAT:
            raise _refusal("format", outer["format"], f"{FORMAT}, which this version reads")
        scheduler = _mapping(outer["scheduler"], "scheduler", ("name", "class", "config"))
        checkpoint = _mapping(outer["checkpoint"], "checkpoint", ("name", "fingerprint"))
        batch = _mapping(outer["batch"], "batch", ("prompts", "jobs", "size", "position"))
        prompts = read("batch.prompts", batch["prompts"], list[str])
        job = tuple[Annotated[int, Within(0, len(prompts) - 1)], Whole]
        pairs = Annotated[list[job], AtLeast(1), "at least one pair of a prompt's number and an index"]
        jobs = read("batch.jobs", batch["jobs"], pairs)
        guidance = read(
            "guidance", outer["guidance"], Annotated[list[dict[str, Any]], Within(0, _MOST_TERMS)]
        )
        for term in guidance:
            read("guidance: term", term.get("term"), str)
        record = cls(
            checkpoint=read("checkpoint.name", checkpoint["name"], str),
            fingerprint=read("checkpoint.fingerprint", checkpoint["fingerprint"], str),
            prompts=tuple(prompts),
            negative_prompt=read("negative_prompt", outer["negative_prompt"], str | None),
            seed=read("seed", outer["seed"], Whole),
            jobs=tuple(jobs),
            batch_size=read("batch.size", batch["size"], Annotated[int, Within(1, MOST_IN_A_BATCH)]),
            position=read(
                "batch.position", batch["position"], Annotated[int, Within(0, len(jobs) - 1)] | None
            ),
            steps=read("steps", outer["steps"], Annotated[int, Within(1, MOST_STEPS)]),
            guidance=guidance,
            scheduler=read("scheduler.name", scheduler["name"], str | None),
            scheduler_class=read("scheduler.class", scheduler["class"], str),
            scheduler_config=_mapping(scheduler["config"], "scheduler.config"),
            made_with=_mapping(outer["made_with"], "made_with"),
        )
        for key, value in record.to_dict().items():
            if document[key] != value:  # such as a prompt that is not the batch's
                raise _refusal(key, document[key], f"what the rest of the document says, {_short(value)}")
        return record


_KEYS = (
    "format",
    "prompt",
    "negative_prompt",
    "seed",
    "index",
    "steps",
    "guidance",
    "scheduler",
    "checkpoint",
    "batch",
    "made_with",
)


def png_info(record: ImageRecord) -> PngImagePlugin.PngInfo:
    """What `Image.save(path, pnginfo=...)` takes: the document, and prompt and software for people."""
    from guided_diffusers import __version__

    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(record.to_dict(), allow_nan=False))  # ASCII, whatever the prompt
    prompts = record.prompts if record.position is None else [record.prompts[record.jobs[record.position][0]]]
    info.add_itxt("Description", "; ".join(prompts).encode("utf-8", "replace").decode())
    info.add_itxt("Software", f"guided-diffusers {__version__}")
    return info


def read_record(path: str | Path) -> ImageRecord:
    """The record inside a PNG, read without decoding the picture.

    Raises:
        ValueError: It is no PNG, has no record, or one that cannot be.
        OSError: There is no such file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is decoded here
            with Image.open(path, formats=["PNG"]) as image:
                text = image.info.get(KEY)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no PNG that can be read: {_first_line(error)}") from error
    if not isinstance(text, str):
        raise ValueError(f"{path} has no metadata of guided-diffusers (no text chunk {KEY!r})")
    try:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"{len(text):,} characters; at most {_MOST_CHARACTERS:,}")
        return ImageRecord.from_dict(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata of {path} cannot be used: {_first_line(error)}") from error


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON values, as it is read back; an infinite number is a string.

    One of your own may have none: {}.
    """
    config = getattr(scheduler, "config", None)
    config = dict(config) if isinstance(config, Mapping) else {}
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    config |= {name: str(v) for name, v in config.items() if isinstance(v, float) and not math.isfinite(v)}
    return json.loads(json.dumps(config, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))


def made_with(device: Any) -> dict[str, Any]:
    """What may change the last bit of an image: versions, the device, and on a CPU the threads."""
    import diffusers
    import torch
    import transformers

    from guided_diffusers import __version__

    libraries = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    versions = {name: str(library.__version__) for name, library in libraries.items()}
    kind = torch.device(device).type
    threads = torch.get_num_threads() if kind == "cpu" else None
    return {"guided_diffusers": __version__, **versions, "device": kind, "threads": threads}


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In words, what was recorded and is now otherwise; a name that was not recorded does not count."""
    return [
        f"{_short(name)[1:-1]} was {_short(value)} and is {_short(found.get(name))}"
        for name, value in recorded.items()
        if name not in found or found[name] != value
    ]


def _mapping(value: Any, name: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(name, value, "a JSON object")
    if keys is not None and set(value) != set(keys):
        odd = sorted(set(value) ^ set(keys))[0]
        raise ValueError(f"{name} {'lacks' if odd in keys else 'has the unknown key'} {_short(odd)}")
    return value


def _refusal(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name} is {_short(value)}; allowed: {allowed}")


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
