r"""Measures classifier guidance on Fashion-MNIST: both forms over scales and steps; with classifier-free.

    python benchmarks/studies/classifier_guidance/measure.py \
        --unconditional runs/fashion_latent_unconditional --conditional runs/fashion_latent_class \
        --classifier runs/fashion_noise_aware_classifier \
        --data data/fashion --judge cache/judge.safetensors --pictures docs/images \
        --save runs/fashion-32-classifier-guided --output model_cards/fashion-32-classifier-guided.json

Of each point: accuracy by a held-out classifier (another architecture, another seed), distances and recall to
the test images, and what an image costs in forwards and backwards. Image i is of class i modulo 10 and of
the noise of (seed, i), the same at every point. All points are under GuidedDDPMScheduler with the denoisers'
process: the mean-shift form is for ancestral schedulers only, and the forms are to be compared under one.
Three points, chosen by the rule that the JSON names, are finals with more images.

Images and figures are kept in `--kept`: what was stopped goes on, at the chunk of images where it was. Two
processes share the work with `--split 0/2` and `--split 1/2`; when both have ended, the first command without
`--split` adds what is left and writes the JSON. `--only` takes groups of points: steps-25, grid, steps-50,
finals (of those three), everywhere, steps-250, the order in which they are measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from figures import draw
from measurement import Measurement

from guided_diffusers.evaluation.labelled import load_split
from guided_diffusers.evaluation.runs import write_json


def main() -> None:
    """Parses the command line, measures, writes JSON, pictures and the pipeline."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    measurement = Measurement(arguments)
    results = measurement.results()
    if results is None:
        print("not complete yet: no JSON is written", flush=True)
        return
    write_json(arguments.output, results)
    if arguments.pictures is not None:
        names = load_split(arguments.data / "test.parquet").names
        draw(results, measurement.images_of, names, arguments.pictures / results["name"])
    if arguments.save is not None:
        measurement.save(results, arguments.save)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("unconditional", "conditional", "classifier"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--judge", type=Path, required=True, help="what fashion_32/judge.py wrote")
    parser.add_argument("--features", default="efficientnet-lite0", help="of distances and recall")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50], help="with every scale")
    parser.add_argument("--long-steps", type=int, default=250, help="with scales 0 and 2")
    parser.add_argument("--num-images", type=int, default=500, help="images a point")
    parser.add_argument("--final-images", type=int, default=5000, help="images a final")
    parser.add_argument("--interval", type=float, nargs=2, default=[0.0, 100.0],
                        help="where the classifier guides, sigma / alpha; the card says why")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=None, help="groups of points; default: all")
    parser.add_argument("--split", type=_share, default=(0, 1), help="I/N: every Nth point from the Ith on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu", help="of denoisers and classifier")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kept", type=Path, default=Path("runs/classifier_guidance"), help="see above")
    parser.add_argument("--pictures", type=Path, default=None, help="folder of the pictures")
    parser.add_argument("--save", type=Path, default=None,
                        help="folder for the unconditional pipeline, its default the best final")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="JSON; it names the pictures too")
    return parser.parse_args()


def _share(text: str) -> tuple[int, int]:
    """`I/N` as numbers."""
    index, count = map(int, text.split("/"))
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text} is no share; allowed: I/N with I from 0 to N - 1")
    return index, count


if __name__ == "__main__":
    main()
