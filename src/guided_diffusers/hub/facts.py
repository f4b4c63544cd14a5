"""What a model card says that a checkpoint's files do not: facts, from `card.json` beside the weights.

Nothing is made up: a field that is not known stays None and its section is left out of the card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from guided_diffusers.core.declared import build
from guided_diffusers.store.reading import read_mapping

FACTS, EVALUATIONS = "card.json", ("evaluation.json", "metrics.json")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the author knows.

    Attributes:
        name: The model's; by default that of the repository.
        task: The Hub's name of what it does; by default that of a pipeline that is known.
        description: What it is, in a paragraph.
        license: The weights' licence, as the Hub abbreviates it ("apache-2.0").
        language: Of the prompts ("en").
        tags: More of them, beside what follows from the files.
        datasets: Ids on the Hub of what it was trained on.
        base_model: Id on the Hub of what it was trained from.
        training_data: What it was trained on, in a paragraph.
        training_data_license: Under what licence that is.
        recipe: How it was trained, a line each.
        images_seen: In training, in all.
        evaluation: What `guided-diffusers evaluate --json` printed (`figures`), or numbers by name.
        evaluation_data: Of the real images it was measured against: `type` (the id) and `name`, maybe
            `split`.
        picture: A picture beside the weights: a grid of what it draws.
        picture_caption: What the picture shows.
        prompt: An example of a prompt, for the code.
        intended_use: What it is for, and what not.
        limits: What it cannot do.
    """

    name: str | None = None
    task: str | None = None
    description: str | None = None
    license: str | None = None
    language: str | None = None
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    training_data: str | None = None
    training_data_license: str | None = None
    recipe: tuple[str, ...] = ()
    images_seen: int | None = None
    evaluation: Mapping[str, Any] | None = None
    evaluation_data: Mapping[str, str] | None = None
    picture: str | None = None
    picture_caption: str | None = None
    prompt: str | None = None
    intended_use: str | None = None
    limits: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CardFacts:
        """From JSON values.

        Raises:
            ValueError: An unknown key, with the nearest known one, or a value of another type.
        """
        lists, known = ("tags", "datasets", "recipe"), {k: v for k, v in values.items() if v is not None}
        several = {key: [known[key]] for key in lists if isinstance(known.get(key), str)}
        return build(cls, {**known, **several})

    @classmethod
    def read(cls, path: str | Path) -> CardFacts:
        """From a JSON file.

        Raises:
            ValueError: It holds no JSON object, or an unknown key.
        """
        return cls.of(read_mapping(path))

    def with_evaluation_of(self, folder: Path) -> CardFacts:
        """With the evaluation that lies in a folder, where these have none."""
        if self.evaluation is not None:
            return self
        for name in EVALUATIONS:
            if (folder / name).is_file():
                return replace(self, evaluation=json.loads((folder / name).read_text(encoding="utf-8")))
        return self

    def to_json(self) -> str:
        """As indented JSON, without what is not known."""
        known = {key: value for key, value in asdict(self).items() if value not in (None, (), {})}
        return json.dumps(known, indent=2) + "\n"


def recipe(name: str, images_seen: int, training: Mapping[str, Any]) -> str:
    """A training run in a line, from the configuration that the scripts share."""
    precision = {"no": "float32"}.get(training["mixed_precision"], training["mixed_precision"])
    return (
        f"{name}: {images_seen:,} images in batches of {training['batch_size']}, AdamW with peak learning "
        f"rate {training['learning_rate']:g} ({training['learning_rate_schedule']}), precision {precision}, "
        f"average of the weights with a half-life of {training['ema_half_life_images']:,.0f} images"
    )
