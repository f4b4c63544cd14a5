r"""Measures the autoencoders of Fashion-MNIST as generative models, beside probabilistic PCA.

    python benchmarks/studies/autoencoders/measure.py --vector runs/fashion_vae_vector \
        --spatial runs/fashion_vae_spatial --plain runs/fashion_autoencoder_plain --data data/fashion \
        --output model_cards/fashion-28-vae.json --pictures docs/images

Likelihoods (evidence bound, IWAE; exact for PCA) of the dequantised test images, reconstructions, and
distances of samples to the test images. What is measured is kept in the folder `--cache`, the likelihoods in
parts of 500 images: a run that was stopped goes on, and a run trained anew is measured anew, it alone. Most
of the time goes to IWAE, a million decoded latents: `--device cuda` helps, and so do more threads.
"""

from __future__ import annotations

import argparse
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cached import CachedValues
from figures import (
    TRAINING_NOISE,
    codes,
    crop,
    decoded,
    dequantised,
    fitted_latents,
    in_both_units,
    likelihoods,
    load_autoencoder,
    prior_latents,
    reconstruction_psnr,
    reconstructions,
    to_levels,
)
from pictures import SPAN, draw
from ppca import fit
from torch import Tensor

from guided_diffusers.evaluation import (
    Reference,
    distance_report,
    extract_features,
    feature_network,
    read_images,
)
from guided_diffusers.evaluation.features import fingerprint_of
from guided_diffusers.evaluation.reference import reference_features
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run, write_json
from guided_diffusers.likelihood.bound import mean_interval

GAUSSIAN = {"posterior": "gaussian", "likelihood": "gaussian"}
EXPECTED = {
    "vector": {**GAUSSIAN, "latent": "vector"},
    "spatial": {**GAUSSIAN, "latent": "spatial"},
    "plain": {"posterior": "deterministic"},
}
PART = 500  # images whose likelihoods are kept together


def main() -> None:
    """Parses the command line, measures, writes JSON and pictures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    measurement = Measurement(arguments)
    results = measurement.results()
    write_json(arguments.output, results)
    if arguments.pictures is not None:
        shares = results["models"]["vector"]["likelihood"]["kl_by_channel"]
        draw(measurement.models, measurement.test, measurement.plain_codes, shares, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in EXPECTED:
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of train_autoencoder.py")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--images", type=int, default=10_000, help="test images of the likelihoods")
    parser.add_argument("--spatial-images", type=int, default=1000, help="the same, of the spatial one")
    parser.add_argument("--draws", type=int, default=100, help="importance samples an image")
    parser.add_argument("--samples", type=int, default=2000, help="images of a distance")
    parser.add_argument("--features", default="efficientnet-lite0", help="of the distances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the autoencoders")
    parser.add_argument("--batch-size", type=int, default=50, help="images at once; more on a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=Path("runs/fashion_vae_figures"), help="see above")
    parser.add_argument("--pictures", type=Path, default=None, help="folder of the pictures")
    parser.add_argument("--output", type=Path, required=True, help="JSON; it names the pictures too")
    return parser.parse_args()


class Measurement:
    """The runs, the images, and every figure of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.cached = arguments, CachedValues(arguments.cache)
        self.runs = {name: getattr(arguments, name) for name in EXPECTED}
        self.models = {
            name: load_autoencoder(run, arguments.device, **EXPECTED[name]) for name, run in self.runs.items()
        }
        self.weights = {name: fingerprint_of(model) for name, model in self.models.items()}
        sides = self.models["vector"].image_size
        self.test, self.training = (
            crop(read_images(arguments.data / f"{name}.parquet").images, sides) for name in ("test", "train")
        )
        self.dimensions = self.test[0].numel()
        self.of_data = {"test": _digest(self.test), "training": _digest(self.training)}
        self.of_data["seed"] = arguments.seed

    @cached_property
    def reference(self) -> Reference:
        """All test images' features."""
        return Reference(reference_features(self.test, self.network))

    @cached_property
    def network(self) -> Any:
        """The feature network."""
        return feature_network(self.arguments.features)

    @cached_property
    def plain_codes(self) -> Tensor:
        """The plain autoencoder's codes of all training images."""
        return codes(self.models["plain"], self.training, self.arguments.batch_size)

    def results(self) -> dict[str, Any]:
        """Everything that the card says."""
        arguments = self.arguments
        vector = self.of_images("vector", arguments.images)
        spatial = self.of_images("spatial", arguments.spatial_images)
        ppca, exact = self.ppca(len(vector["iwae"]))
        found = {"vector": vector, "spatial": spatial, "plain": None}
        few = len(spatial["iwae"])
        return {
            "name": arguments.output.stem,
            "features": self.network.name,
            "dimensions": self.dimensions,
            "image_size": self.test.shape[-1],
            "span": SPAN,
            **{key: getattr(arguments, key) for key in ("draws", "samples", "seed")},
            "training_images": len(self.training),
            "models": {name: self.model(name, values) for name, values in found.items()},
            "ppca": ppca,
            "less_ppca": {
                name: mean_interval(torch.tensor(vector[name], dtype=torch.float64) - exact).to_dict()
                for name in ("elbo", "iwae")
            },
            "on_the_same": {
                name: {"images": few, **in_both_units(_float64(values)[:few], self.dimensions)}
                for name, values in (("vector", vector["iwae"]), ("ppca", exact.tolist()))
            },
            "real": self.distances("training-images", {}, lambda: _spread(self.training, arguments.samples)),
            "seconds": round(self.cached.seconds),
            "device": arguments.device,
            "machine": machine(arguments.device),
        }

    def model(self, name: str, found: dict[str, list[float]] | None) -> dict[str, Any]:
        """One autoencoder's figures."""
        model, run, of = self.models[name], self.runs[name], {"weights": self.weights[name]}
        decibels = self.cached.value(
            f"{name}-psnr", {**of, **self.of_data}, lambda: reconstruction_psnr(model, self.test)
        )
        figures = {
            "parameters_millions": parameters_millions(model),
            "megabytes": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6, 2),
            "latent_shape": list(model.latent_shape()),
            "psnr": mean_interval(_float64(decibels)).to_dict(),
            "samples": self.distances(f"{name}-samples", of, lambda: self.samples(name)),
            "reconstructions": self.distances(f"{name}-reconstructions", of, lambda: self.copies(name)),
            "training": training_run(run),
        }
        if found is not None:
            figures["likelihood"] = self.likelihood(found)
            figures["deviation"] = model.decoder_likelihood.log_variance.exp().sqrt().item()
        return figures

    def likelihood(self, found: dict[str, list[float]]) -> dict[str, Any]:
        """Means with intervals."""
        count = len(found["elbo"])
        return {
            "images": count,
            "kl": mean_interval(_float64(found["kl"])).to_dict(),
            "kl_by_channel": [total / count for total in found["kl_by_channel"]],
            **{name: in_both_units(_float64(found[name]), self.dimensions) for name in ("elbo", "iwae")},
        }

    def of_images(self, name: str, count: int) -> dict[str, list[float]]:
        """Nats of each of the first test images, measured part by part."""
        arguments, images = self.arguments, self.test[:count]
        of = {"weights": self.weights[name], "draws": arguments.draws, **self.of_data}
        found: dict[str, list[float]] = {}
        for first in range(0, len(images), PART):
            part = images[first : first + PART]
            options = (part, first, arguments.draws, arguments.seed, arguments.batch_size)
            values = self.cached.value(
                f"{name}-likelihood-{first:05d}",
                {**of, "images": len(part)},
                lambda options=options: likelihoods(self.models[name], *options),
            )
            for key, value in values.items():
                before = found.get(key, [])
                sums = key == "kl_by_channel" and before
                found[key] = [a + b for a, b in zip(before, value, strict=True)] if sums else before + value
        return found

    def ppca(self, count: int) -> tuple[dict[str, Any], Tensor]:
        """Probabilistic PCA of the vector's size: its figures, and the exact nats of each test image."""
        size = self.models["vector"].config.latent_channels

        def make() -> dict[str, Any]:
            seed = self.arguments.seed
            fitted = fit(dequantised(self.training, seed, stream=TRAINING_NOISE), size)
            nats = fitted.log_likelihood(dequantised(self.test[:count], seed))
            return {"nats": nats.tolist(), "noise_variance": fitted.noise_variance}

        found = self.cached.value("ppca", {**self.of_data, "size": size, "images": count}, make)
        exact = _float64(found["nats"])
        figures = {"images": count, "latent_size": size, "deviation": found["noise_variance"] ** 0.5}
        return {**figures, "exact": in_both_units(exact, self.dimensions)}, exact

    def samples(self, name: str) -> Tensor:
        """Of the prior; of a Gaussian fitted to the codes where there is none."""
        model, count, seed = self.models[name], self.arguments.samples, self.arguments.seed
        if name == "plain":
            latents = fitted_latents(model, self.plain_codes, count, seed)
        else:
            latents = prior_latents(model, count, seed)
        return decoded(model, latents, self.arguments.batch_size)

    def copies(self, name: str) -> Tensor:
        """Reconstructions of test images."""
        images = _spread(self.test, self.arguments.samples)
        return to_levels(reconstructions(self.models[name], images, self.arguments.batch_size))

    def distances(self, name: str, of: dict[str, Any], make: Any) -> dict[str, Any]:
        """Every distance of some images to the test images."""

        def measure() -> dict[str, Any]:
            features = extract_features(self.network, make())
            report = distance_report(self.reference, features, self.network.name, seed=self.arguments.seed)
            return {figure: estimate.to_dict() for figure, estimate in report.items()}

        network = [self.network.name, getattr(self.network, "fingerprint", "")]
        count = {"samples": self.arguments.samples, "features": network}
        return self.cached.value(f"{name}-distances", {**of, **count, **self.of_data}, measure)


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _spread(images: Tensor, count: int) -> Tensor:
    """So many of the images, evenly spaced; all where there are not more."""
    return images[:: max(1, len(images) // count)][:count]


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
