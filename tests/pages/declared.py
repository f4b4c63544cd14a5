"""What a test does otherwise than a reader: which commands are shorter, which are not typed, and why.

Everything else on the pages is run as it stands.
"""

from __future__ import annotations

import re
from pathlib import Path

from pages.blocks import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN_ELSEWHERE = {"docs/lecture/lecture.md": "lecture"}
"""Pages whose blocks another test runs, with a word of that test's name."""

SOURCE = "fashion-idx"  # four small IDX files, made of tests/data/fashion_slice.parquet

SHORTER: tuple[tuple[str, str], ...] = (
    (
        r"training/train_\w+\.py|guided-diffusers train ",
        "--training.num_images 16 --training.batch_size 8 --training.warmup_images 0 "
        "--training.mixed_precision no",
    ),
    (r"configs/fashion_unconditional\.yaml", "--validation.bound_images 8"),
    (r"training/data/fashion_mnist\.py", f"--source {SOURCE}"),
    (r"benchmarks/studies/fashion_32/judge\.py", "--epochs 1 --width 4"),
    (r"guided-diffusers generate (?!.*--from-image)", "--steps 2 --num-images 4"),
    (r"guided.diffusers evaluate .*--checkpoint", "--num-images 10 --steps 2 --batch-size 5"),
    (r"guided-diffusers likelihood .*--plot", "--images 4 --draws 3"),
    (r"guided-diffusers likelihood .*--full", "--full 2"),
)
"""What is added to a command, by a pattern that it matches: options of which the last one counts."""

REPLACED: tuple[tuple[str, str], ...] = (
    (r"snapshots/53760", "snapshots/8"),  # half of the 16 images of the shorter run
    (r"(?m)^images: 500$", "images: 16"),
    (r"(?m)^  images: 1000$", "  images: 16"),
    (r"(?m)^steps: \[20\]$", "steps: [2]"),
    (r"(?m)^  steps: \[10, 20\]$", "  steps: [2, 3]"),
)
"""What a number on a page, in a command or a file, is in a test."""

NOT_TYPED = {
    "pip install": "it downloads torch",
    "make generate": "it makes an environment of its own, which downloads torch",
    "make": "the same, and the tests would run themselves",
    "python training/data/emoji": "it downloads packages of pictures",
    "accelerate launch training/train_autoencoder.py --config training/configs/emoji": "it trains on these",
    "accelerate launch training/train_upsampler.py --config training/configs/emoji": "the same",
    "accelerate launch training/train_text_to_image.py --config training/configs/emoji": "the same",
    "accelerate launch --multi_gpu": "it needs two GPUs",
    "guided-diffusers convert-": "the published checkpoints are not ours to ship",
}
"""The commands that no test types, by how they begin, and why: their options are checked all the same."""

UNTRAINED = {
    "runs/fashion_latent_unconditional/final": "fashion_latent_unconditional",
    "runs/fashion_latent_class/final": "fashion_latent_class",
    "runs/fashion_unconditional/final": "fashion_unconditional",
    "runs/fashion_vae_vector/final": "fashion_vae_vector",
    "runs/fashion_upsampler/final": "fashion_upsampler",
    "runs/fashion_noise_aware_classifier/final": "fashion_noise_aware_classifier",
    "runs/fashion_noise_aware_clip/final": "fashion_noise_aware_clip",
}
"""What training would have made, for the Python of the pages: the networks of these configurations, new."""

EXPECTED = {
    "README.md": [
        "[image.size for image in images] == [(32, 32)] * 2",
        "len(coats) == 1",
        "pipeline.config._name_or_path == 'you/your-model' and pipeline.weak_denoiser is not None",
    ],
    "docs/use.md": [
        "abs(together[2] - alone[0]).max() < 1e-4",
        "[len(large), large[0].size, small[0].size] == [1, (128, 128), (32, 32)]",
        "len(in_tiles) == len(faithful) == 4 and faithful[0].size == (128, 128)",
        "len(steps_between) == 8 and plane.size == (6 * 28, 6 * 28)",
        "latents.shape == (1, 4, 8, 8) and latents.isfinite().all() and not latents.requires_grad",
        "pixels.shape == (8, 1, 28, 28) and bound.bits_per_dim.isfinite().all()",
        "len(images) == 4 and images[0].size == (32, 32)",
    ],
    "docs/guide.md": [
        "len(run.record) == 10 and set(run.calls) == {1, 2}",
        "coat.size == (32, 32) and type(stable) is StableDiffusionPipeline",
        "len(rows) == 8 and len({row[0].tobytes() for row in rows}) == 8",
        "image.size == (32, 32) and Guidance.from_config(config, weak=weak) == guidance",
        "'class_labels' in blocks.doc and 'class_labels' not in StableDiffusionXLAutoBlocks().doc",
    ],
    "docs/steer.md": [
        "all(each.size == (32, 32) for each in (lit, sandal, red, bag, inpainted, enlarged, sharp))",
        "enlarged_too.size == (32, 32)",
        "sum(lit.tobytes()) > sum(pipeline('a photo of a coat', num_inference_steps=10).images[0].tobytes())",
        "varied.size == filled.size == (32, 32)",
    ],
    "docs/train.md": ["len(list(folder.glob('*.png'))) == 32"],
    "docs/evaluate.md": [
        "abs(kernel_distance(one, other)) < 0.1 * frechet_distance(one, other)",
        "'agreement' in figures and any(name.startswith('KD-') for name in figures)",
        "estimate.low <= estimate.value <= estimate.high",
    ],
    "docs/share.md": [
        "half.unet.dtype == torch.float16 and stronger.config.default_guidance[0]['scale'] == 3.0",
        "type(generic).__name__ == type(ours).__name__ == 'TextToImagePipeline'",
        "not weights.exists()",
    ],
    "docs/extend.md": [
        "again.config.default_guidance[0]['term'] == 'FadedGuidance'",
        "abs(drawn.mean() - 2.0) < 0.02 and abs(drawn.std() - 0.5) < 0.02",
        "(pictures.mean((1, 2, 3)) - torch.tensor([-1.0, 1.0])).abs().max() < 0.3",
    ],
}
"""What is true after a page's Python: expressions of its names."""


def name_of(page: Path) -> str:
    """A page's path from the root; of a page elsewhere, its name."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def why_not_typed(command: str) -> str | None:
    """Why no test types a command; None for one that is typed."""
    return next((why for start, why in NOT_TYPED.items() if command.startswith(start)), None)


def replaced(text: str) -> str:
    """A command or a file with a test's numbers."""
    for pattern, number in REPLACED:
        text = re.sub(pattern, number, text)
    return text


def shorter(command: str) -> str:
    """A command as a test types it."""
    added = [options for pattern, options in SHORTER if re.search(pattern, command)]
    return " ".join([replaced(command), *added])
