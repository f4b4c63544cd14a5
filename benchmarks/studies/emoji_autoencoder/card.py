"""Writes the model card of the emoji autoencoder from the measured JSON: no measurement is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/emoji_autoencoder/card.py --results model_cards/emoji-64-vae.json
        --output model_cards/emoji-64-vae.md

With `--ship FOLDER` the better arm's weights, in float16, are written as a checkpoint of VAEPipeline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from guided_diffusers import VAEPipeline, VariationalAutoencoder
from guided_diffusers.evaluation.cards import (
    card_parser,
    interval,
    recipe,
    run_name,
    training_command,
    write_card,
)

TEMPLATE = Path(__file__).with_name("card.template.md")
NAMES = {
    "l1": "L1",
    "plain": "L1, then L1",
    "perceptual": "L1, then L1, perceptual and adversarial",
}
DECIDES = "KD-efficientnet-lite1"
"""The kernel distance that chooses between the arms: of a network that had no part in any loss."""


def main() -> None:
    """Parses the command line, writes the card and, where it is wanted, the checkpoint."""
    parser = card_parser(__doc__, "measure.py")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the trained arms")
    parser.add_argument("--ship", type=Path, default=None, help="folder of the checkpoint to write")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    write_card(arguments.output, card(results, arguments.pictures, arguments.results.stem))
    if arguments.ship is not None:
        ship(arguments.runs / run_name(results["arms"][better(results)]["training"]), arguments.ship)


def ship(run: Path, folder: Path) -> None:
    """Writes a run's autoencoder as a checkpoint of VAEPipeline that does not say where it came from."""
    vae = VariationalAutoencoder.from_pretrained(run / "final", torch_dtype=torch.float16)
    VAEPipeline(vae).save_pretrained(folder)
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def card(results: dict[str, Any], pictures: str, name: str) -> str:
    """The whole card as Markdown with its YAML head."""
    arms, config = results["arms"], results["arms"]["l1"]["training"]["config"]
    widths, size = config["autoencoder"]["block_out_channels"], config["data"]["resolution"]
    factor = 2 ** (len(widths) - 1)
    styles = list(arms["l1"]["psnr_db_by_style"])
    chosen = arms[better(results)]
    seen = arms["l1"]["training"]["images_seen"] + chosen["training"]["images_seen"]
    return TEMPLATE.read_text().format(
        name=name,
        results_name=f"{name}.json",
        picture=f"{pictures}/{name}.png",
        size=size,
        factor=factor,
        latents=f"{config['autoencoder']['latent_channels']}x{size // factor}x{size // factor}",
        parameters=chosen["parameters"],
        megabytes=chosen["megabytes"],
        images=results["images"],
        kernels=" | ".join(f"{figure} x 1000" for figure in kernels(results)),
        rows="\n".join(row(NAMES[arm], figures, kernels(results)) for arm, figures in arms.items()),
        verdict=verdict(results),
        styles=" | ".join(styles),
        style_rules="---|" * (len(styles) - 1) + "---",
        style_rows="\n".join(
            f"| {NAMES[arm]} | "
            + " | ".join(interval(figures["psnr_db_by_style"][style], ".1f") for style in styles)
            + " |"
            for arm, figures in arms.items()
        ),
        training_images=results["training_images"],
        recipes="\n".join(recipe(NAMES[arm], figures["training"]) for arm, figures in arms.items()),
        kl_weight=config["loss"]["kl_weight"],
        epochs=seen / results["training_images"],
        training_commands="\n".join(training_command(figures["training"]) for figures in arms.values()),
        arms=" ".join(f"{arm}=runs/{run_name(figures['training'])}/final" for arm, figures in arms.items()),
    )


def kernels(results: dict[str, Any]) -> list[str]:
    """The names of the kernel distances, which carry the feature networks'."""
    return [name for name in results["arms"]["l1"] if name.startswith("KD-")]


def better(results: dict[str, Any]) -> str:
    """The arm of the lower deciding distance."""
    return min(("plain", "perceptual"), key=lambda arm: results["arms"][arm][DECIDES]["value"])


def verdict(results: dict[str, Any]) -> str:
    """What the comparison says, and so what ships."""
    winner = better(results)
    loser = {"plain": "perceptual", "perceptual": "plain"}[winner]
    best, other = (results["arms"][arm][DECIDES] for arm in (winner, loser))
    clear = "beyond" if best["high"] < other["low"] else "though not beyond"
    change = interval(results["psnr_db_differences"]["perceptual - plain"], "+.2f")
    return (
        f"**What ships is “{NAMES[winner]}”**: its {DECIDES} is the lower one, {clear} the intervals. The "
        f"perceptual and adversarial losses change PSNR by {change} dB, picture by picture."
    )


def row(name: str, figures: dict[str, Any], distances: list[str]) -> str:
    """An arm's line of the table."""
    run = figures["training"]
    cells = [
        name,
        f"{run['images_seen']:,}",
        f"{run['seconds'] / 60:.1f}",
        interval(figures["psnr_db"], ".2f"),
    ]
    cells += [interval(figures[distance], ".2f", 1000) for distance in distances]
    return f"| {' | '.join([*cells, interval(figures['sharpness'], '.2f')])} |"


if __name__ == "__main__":
    main()
