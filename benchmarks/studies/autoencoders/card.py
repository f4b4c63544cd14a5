"""Writes the model card of the autoencoders of Fashion-MNIST from the measured JSON: no measurement is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/autoencoders/card.py --results model_cards/fashion-28-vae.json
        --features model_cards/fashion-28-features.json --output model_cards/fashion-28-vae.md
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from features_table import table

from guided_diffusers.core.distributions import BIN_WIDTH
from guided_diffusers.evaluation.cards import (
    card_parser,
    interval,
    recipe,
    run_name,
    training_command,
    write_card,
)

TEMPLATE = Path(__file__).with_name("card.template.md")
NAMES = {"vector": "vector VAE", "spatial": "spatial VAE", "plain": "plain autoencoder"}
SOURCES = {"vector": "prior", "spatial": "prior", "plain": "Gaussian fitted to codes"}
PICTURES = ("samples", "traversal", "interpolation", "reconstructions")
IN_USE_NATS = 0.1
"""A latent dimension with less mean KL says next to nothing of an image."""


def main() -> None:
    """Parses the command line and writes the card."""
    parser = card_parser(__doc__, "measure.py")
    parser.add_argument("--features", type=Path, required=True, help="what features.py wrote")
    arguments = parser.parse_args()
    results, features = (json.loads(path.read_text()) for path in (arguments.results, arguments.features))
    write_card(
        arguments.output,
        card(results, features, arguments.pictures, arguments.results.name, arguments.features.name),
    )


def card(
    results: dict[str, Any], features: dict[str, Any], pictures: str, results_name: str, features_name: str
) -> str:
    """The whole card as Markdown with its YAML head."""
    name, models, pixels = results["name"], results["models"], results["dimensions"]
    few = results["on_the_same"]
    return TEMPLATE.read_text().format(
        results_name=results_name,
        **{f"{kind}_picture": f"{pictures}/{name}-{kind}.png" for kind in PICTURES},
        **{key: results[key] for key in ("name", "dimensions", "draws", "samples", "span")},
        **{key: results[key] for key in ("training_images", "device")},
        size=results["image_size"],
        features=results["features"]
        + ("" if results["features"] == "inception" else " (not Inception: no FID)"),
        latent_size=results["ppca"]["latent_size"],
        spatial_latents="x".join(map(str, models["spatial"]["latent_shape"])),
        plain_latents=math.prod(models["plain"]["latent_shape"]),
        deviations=" and ".join(f"{models[kind]['deviation']:.3f}" for kind in ("vector", "spatial")),
        kernel=_figure(results, "K"),
        frechet=_figure(results, "F"),
        rows="\n".join(table_rows(results)),
        distance_rows="\n".join(distance_rows(results)),
        psnr_images=models["vector"]["psnr"]["count"],
        vector_images=models["vector"]["likelihood"]["images"],
        spatial_images=models["spatial"]["likelihood"]["images"],
        verdict=verdict(results["less_ppca"]["iwae"]),
        less_ppca=interval(results["less_ppca"]["iwae"], "+,.1f"),
        elbo_less_ppca=interval(results["less_ppca"]["elbo"], "+,.1f"),
        prior_buys=prior_buys(results),
        features_name=features_name,
        plain_run=run_name(models["plain"]["training"]),
        features_table=table(features),
        **features_settings(features),
        active=active(models["vector"]["likelihood"]["kl_by_channel"]),
        few=few["vector"]["images"],
        vector_few=interval(few["vector"]["nats"], ",.1f"),
        ppca_few=interval(few["ppca"]["nats"], ",.1f"),
        to_levels=pixels * math.log(BIN_WIDTH),
        to_unit=pixels * math.log(2),
        highest=_highest(models["vector"]["likelihood"]["kl_by_channel"]),
        vector_run=f"runs/{run_name(models['vector']['training'])}",
        parameters=", ".join(
            f"{NAMES[kind]} {model['parameters_millions']}" for kind, model in models.items()
        ),
        recipes="\n".join(recipe(NAMES[kind], model["training"]) for kind, model in models.items()),
        epochs=_epochs(results),
        training_commands="\n".join(training_command(model["training"]) for model in models.values()),
        measure_command=measure_command(results, results_name),
        minutes=results["seconds"] / 60,
        threads=_threads(results["machine"]["threads"]),
        processor=results["machine"]["processor"],
    )


def table_rows(results: dict[str, Any]) -> list[str]:
    """The table's lines: the autoencoders, probabilistic PCA, real images."""
    lines = []
    for kind, model in results["models"].items():
        known = model.get("likelihood")
        likelihoods = ["-"] * 4 if known is None else _both(known["elbo"]) + _both(known["iwae"])
        latents = "x".join(map(str, model["latent_shape"]))
        cells = [NAMES[kind], latents, interval(model["psnr"], ".2f"), *likelihoods]
        lines.append(_line(cells + _distances(results, model["samples"])))
    exact = [f"exact: {cell}" for cell in _both(results["ppca"]["exact"])]
    size = str(results["ppca"]["latent_size"])
    lines.append(_line(["probabilistic PCA", size, "-", "-", "-", *exact, "-", "-"]))
    return [*lines, _line(["training images"] + ["-"] * 6 + _distances(results, results["real"]))]


def distance_rows(results: dict[str, Any]) -> list[str]:
    """Every distance of samples, of reconstructions, and of real images."""
    sets = {f"{NAMES[k]}: {SOURCES[k]}": model["samples"] for k, model in results["models"].items()}
    sets |= {f"{NAMES[k]}: reconstructions": m["reconstructions"] for k, m in results["models"].items()}
    rest = ("precision", "recall", "density", "coverage")
    return [
        _line([label, *_distances(results, figures), *(f"{figures[name]['value']:.2f}" for name in rest)])
        for label, figures in {**sets, "training images": results["real"]}.items()
    ]


def verdict(less: dict[str, float]) -> str:
    """Whether the VAE's likelihood is the higher one, in words."""
    if less["low"] > 0:
        return "The vector VAE beats probabilistic PCA of the same latent size."
    if less["high"] < 0:
        return (
            "The vector VAE does not beat probabilistic PCA: its bound is lower, though the truth may not be."
        )
    return "No difference between the vector VAE and probabilistic PCA beyond the interval."


def prior_buys(results: dict[str, Any]) -> str:
    """How the vector VAE's samples compare with the plain autoencoder's, in words."""
    name = _figure(results, "K")
    prior, fitted = (results["models"][kind]["samples"][name] for kind in ("vector", "plain"))
    if prior["high"] < fitted["low"]:
        words = "nearer to the test images than"
    elif fitted["high"] < prior["low"]:
        words = "farther from the test images than"
    else:
        words = "as far from the test images, within the intervals, as"
    return (
        f"What the prior buys: the vector VAE's samples are {words} what a Gaussian fitted to the plain "
        f"autoencoder's codes gives ({name} x 1000: {interval(prior, '.1f', 1000)} and "
        f"{interval(fitted, '.1f', 1000)})."
    )


def active(kl_by_channel: list[float]) -> str:
    """How many latent dimensions are in use, and for how much."""
    used = sum(kl > IN_USE_NATS for kl in kl_by_channel)
    return (
        f"Of the vector VAE's {len(kl_by_channel)} latent dimensions {used} carry more than {IN_USE_NATS:g} "
        f"nats, all together {sum(kl_by_channel):.1f} nats an image."
    )


def features_settings(features: dict[str, Any]) -> dict[str, str | int]:
    """How the table of features was made, in words."""
    points = features["points"]
    steps = {point["labels"]: point["steps"] for point in points}
    labels, lengths = (" ".join(map(str, values)) for values in (steps, steps.values()))
    rates = {point["arm"]: point["learning_rate"] for point in points}
    return {
        "seeds": len({point["seed"] for point in points}),
        "steps": ", ".join(f"{count:,}" for count in steps.values()),
        "feature_batch": points[0]["batch_size"],
        "pool_size": points[0]["pool_size"],
        "rates": ", ".join(f"{rate:g} ({arm})" for arm, rate in rates.items()),
        "accuracy_images": features["test_images"],
        "features_options": f"--labels {labels} --steps {lengths}",
    }


def measure_command(results: dict[str, Any], results_name: str) -> str:
    """The command of the measurement with the options that it had."""
    models = results["models"]
    runs = " \\\n    ".join(f"--{kind} runs/{run_name(model['training'])}" for kind, model in models.items())
    images = models["vector"]["likelihood"]["images"], models["spatial"]["likelihood"]["images"]
    return (
        f"python benchmarks/studies/autoencoders/measure.py {runs} \\\n"
        f"    --data data/fashion --images {images[0]} --spatial-images {images[1]} "
        f"--draws {results['draws']} --samples {results['samples']} \\\n"
        f"    --output model_cards/{results_name} --pictures docs/images"
    )


def _both(likelihood: dict[str, Any]) -> list[str]:
    return [interval(likelihood["nats"], ",.1f"), interval(likelihood["bits_per_dim"], ".3f")]


def _distances(results: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    kernel, frechet = figures[_figure(results, "K")], figures[_figure(results, "F")]
    return [interval(kernel, ".1f", 1000), interval(frechet, ".1f")]


def _figure(results: dict[str, Any], initial: str) -> str:
    """The name of the kernel (K) or the Frechet (F) distance, which carries the feature network's."""
    return next(name for name in results["real"] if name.startswith(initial))


def _highest(kl_by_channel: list[float]) -> str:
    return " and ".join(f"{kl:.2f}" for kl in sorted(kl_by_channel, reverse=True)[:2])


def _epochs(results: dict[str, Any]) -> str:
    seen = (model["training"]["images_seen"] for model in results["models"].values())
    return ", ".join(f"{images / results['training_images']:.1f}" for images in seen)


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
