"""A model card that is filled: from the checkpoint's files, and from what its author knows (see `facts`).

Its figures are also metadata (`model-index`), from which the Hub makes its own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from guided_diffusers.hub.facts import EVALUATIONS, FACTS, CardFacts
from guided_diffusers.hub.inventory import guidance_text, inventory
from guided_diffusers.store.safety import check_path

CARD = "README.md"
_WITHOUT_PROMPT = ("ImagePipeline", "DDPMPipeline", "DDIMPipeline")
BESIDE = (CARD, FACTS, *EVALUATIONS)
"""What lies beside the weights and goes with them."""


def card_files(
    folder: Path, repo_id: str, card: str | Path | CardFacts | None = None, with_code: bool = False
) -> dict[str, Path | bytes]:
    """The card, and the picture that it shows where that lies elsewhere, by their paths in the repository.

    Args:
        folder: The checkpoint's.
        repo_id: Its name on the Hub.
        card: A card (.md), facts (.json or CardFacts), or None for the facts in the folder.
        with_code: The repository has an entry point for the generic loader.
    """
    beside = folder
    if isinstance(card, CardFacts):
        facts = card
    elif card is None:
        facts = CardFacts.read(folder / FACTS) if (folder / FACTS).is_file() else CardFacts()
    elif Path(card).suffix == ".md":
        return {CARD: Path(card).read_bytes()}
    else:
        facts, beside = CardFacts.read(card), Path(card).parent
    facts = facts.with_evaluation_of(folder)
    files: dict[str, Path | bytes] = {}
    if facts.picture is not None:
        check_path(facts.picture, "picture")
        path = next(
            (place / facts.picture for place in (beside, folder) if (place / facts.picture).is_file()), None
        )
        if path is None:
            raise OSError(f"picture is {facts.picture!r}, and there is no such file in {beside}")
        files[facts.picture] = path
    files[CARD] = str(model_card(folder, repo_id, facts, with_code)).encode()
    return files


def model_card(folder: Path, repo_id: str, facts: CardFacts, with_code: bool = False) -> ModelCard:
    """The card of a checkpoint's folder, sections without content left out."""
    content = inventory(folder)
    sections = [
        f"# {facts.name or repo_id.split('/')[-1]}",
        facts.description or _what_it_is(content),
        f"![{facts.picture_caption or 'What it draws'}]({facts.picture})" if facts.picture else None,
        _section("Use", _use(content, repo_id, facts, with_code)),
        _section("The model", _model(content)),
        _section("Training", _training(facts)),
        _section("Evaluation", _evaluation(facts)),
        _section("Intended use", facts.intended_use),
        _section("Limits", facts.limits),
    ]
    text = "\n\n".join(section for section in sections if section)
    data = _metadata(content, repo_id, facts)
    return ModelCard(f"---\n{data.to_yaml().strip()}\n---\n\n{text}\n")


def figures_of(evaluation: Mapping[str, Any] | None) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """The figures of an evaluation, by name: value, and 95% interval where there is one."""
    found = {}
    for name, value in ((evaluation or {}).get("figures") or evaluation or {}).items():
        if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
            interval = (value["low"], value["high"]) if "low" in value and "high" in value else None
            found[name] = (value["value"], interval)
        elif isinstance(value, int | float) and not isinstance(value, bool) and not name.endswith("images"):
            found[name] = (value, None)
    return found


def _section(title: str, text: str | None) -> str | None:
    return f"## {title}\n\n{text}" if text else None


def _task(content: Mapping[str, Any], facts: CardFacts) -> str | None:
    """The Hub's name of what it does."""
    name = str(content["class"])
    if facts.task is not None:
        return facts.task
    if _draws_text(content):
        return "text-to-image"
    if name == "UpsamplePipeline":
        return "image-to-image"
    return "unconditional-image-generation" if name in _WITHOUT_PROMPT else None


def _draws_text(content: Mapping[str, Any]) -> bool:
    """Whether its pipeline, or the first stage of a cascade, draws for a prompt."""
    name = next(iter(content.get("stages", {}).values()), str(content["class"]))
    return str(name).endswith(("TextToImagePipeline", "StableDiffusionPipeline"))


def _metadata(content: Mapping[str, Any], repo_id: str, facts: CardFacts) -> ModelCardData:
    task = _task(content, facts)
    about, results = facts.evaluation_data or {}, []
    if task and {"type", "name"} <= set(about):
        for name, (value, _) in figures_of(facts.evaluation).items():
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=about["type"],
                    dataset_name=about["name"],
                    dataset_split=about.get("split"),
                    metric_type=name,
                    metric_value=value,
                )
            )
    tags = dict.fromkeys(["diffusers", "guided-diffusers", *([task] if task else []), *facts.tags])
    return ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name="guided-diffusers",
        pipeline_tag=task,
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model,
        tags=list(tags),
        model_name=(facts.name or repo_id.split("/")[-1]) if results else None,
        eval_results=results or None,
    )


def _what_it_is(content: Mapping[str, Any]) -> str:
    size = content["image_size"]
    sides = "x".join(map(str, size if isinstance(size, list) else [size, size])) if size else None
    draws = f", which draws images of {sides} pixels" if sides else ""
    return f"A `{content['class']}` of {content['parameters'] / 1e6:.2f} million parameters{draws}."


def _use(content: Mapping[str, Any], repo_id: str, facts: CardFacts, with_code: bool) -> str:
    name = content["class"]
    call = _call(content, facts)
    what = "pipeline" if str(name).endswith("Pipeline") else "model"
    parts = []
    if hasattr(import_module("guided_diffusers"), str(name)):
        lines = f'from guided_diffusers import {name}\n\n{what} = {name}.from_pretrained("{repo_id}"){call}'
        parts.append(f"With `pip install guided-diffusers`:\n\n```python\n{lines}\n```")
        if with_code:
            lines = "from diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline.from_pretrained("
            lines += f'"{repo_id}", trust_remote_code=True){call}'
            parts.append(
                "By diffusers' generic loader, which runs the files `*.py` of this repository (they import "
                f"the same package):\n\n```python\n{lines}\n```"
            )
    elif name:
        lines = f'from diffusers import {name}\n\n{what} = {name}.from_pretrained("{repo_id}"){call}'
        parts.append(f"With diffusers:\n\n```python\n{lines}\n```")
    if (plain := _without_us(content, repo_id)) and parts:
        parts.append(f"Its networks without guided-diffusers:\n\n```python\n{plain}\n```")
    return "\n\n".join(parts)


def _call(content: Mapping[str, Any], facts: CardFacts) -> str:
    """The line that draws, for pipelines whose arguments are known."""
    name, configs = str(content["class"]), [component["config"] for component in content["components"]]
    if _draws_text(content):
        return f'\nimage = pipeline("{facts.prompt or "a prompt"}").images[0]'
    if name == "UpsamplePipeline":
        return '\nimage = pipeline("small.png").images[0]'
    if name not in _WITHOUT_PROMPT:
        return ""
    classes = any("num_class_embeds" in config for config in configs)
    return f"\nimage = pipeline({'class_labels=0' if classes else ''}).images[0]"


def _without_us(content: Mapping[str, Any], repo_id: str) -> str:
    """How diffusers and transformers load the networks that are theirs, and an autoencoder's weights."""
    lines: dict[str, list[str]] = {}
    loads, notes = [], []
    for component in content["components"]:
        library, name, part = component["library"], component["class"], component["name"]
        where = f'"{repo_id}"' + (f', subfolder="{part}"' if part else "")
        if name == "VariationalAutoencoder":
            library, name = "diffusers", "AutoencoderKL"
            notes.append("# its latents: z * latents_std + latents_mean (in config.json), z standardised")
        if component["parameters"] and library in ("diffusers", "transformers"):
            lines.setdefault(library, []).append(name)
            variable = part.replace("/", "_") or "model"  # of a cascade: base/unet
            loads.append(f"{variable} = {name}.from_pretrained({where})")
    imports = [
        f"from {library} import {', '.join(sorted(set(names)))}" for library, names in sorted(lines.items())
    ]
    return "\n".join([*imports, "", *loads, *notes]) if loads else ""


def _model(content: Mapping[str, Any]) -> str:
    rows = ["| part | class | million parameters | stored as |", "|---|---|---|---|"]
    for component in content["components"]:
        if component["files"]:
            stored = ", ".join([*component["dtypes"], *(f"variant {name}" for name in component["variants"])])
            millions = f"{component['parameters'] / 1e6:.2f}"
            rows.append(
                f"| {component['name'] or 'model'} | `{component['class']}` | {millions} | {stored} |"
            )
    lines = ["\n".join(rows)]
    if schedule := content["schedule"]:
        settings = ", ".join(f"{key} {value}" for key, value in schedule.items() if key != "class")
        lines.append(f"Schedule: `{schedule['class']}`, {settings}.")
    if content["default_guidance"]:
        lines.append(f"Default guidance: {guidance_text(content['default_guidance'])}.")
    return "\n\n".join(lines)


def _training(facts: CardFacts) -> str:
    lines = []
    if facts.training_data:
        lines.append(facts.training_data)
    if facts.training_data_license:
        lines.append(f"Licence of the training data: {facts.training_data_license}.")
    if facts.images_seen is not None:
        lines.append(f"Images seen: {facts.images_seen:,}.")
    if facts.recipe:
        lines.append("\n".join(f"- {line}" for line in facts.recipe))
    return "\n\n".join(lines)


def _evaluation(facts: CardFacts) -> str:
    figures = figures_of(facts.evaluation)
    if not figures:
        return ""
    rows = ["| figure | value | 95% interval |", "|---|---|---|"]
    for name, (value, interval) in figures.items():
        between = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        rows.append(f"| {name} | {value:.4g} | {between} |")
    about, counts = facts.evaluation_data or {}, facts.evaluation
    against = f" against {about['name']}" if "name" in about else ""
    images = [
        f"{counts[key]:,} {words}" for key, words in _COUNTS.items() if isinstance(counts.get(key), int)
    ]
    lead = f"Measured{against}{' on ' if images else ''}{' and '.join(images)}."
    return ("" if lead == "Measured." else lead + "\n\n") + "\n".join(rows)


_COUNTS = {"images": "images", "real_images": "real images"}
