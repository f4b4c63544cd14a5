"""Pictures of a checkpoint at work as a section of its model card: forward, reverse, loss, closest pairs."""

from __future__ import annotations

from typing import Any

from guided_diffusers.evaluation.cards import interval


def section(facts: dict[str, Any], folder: str, name: str) -> str:
    """The section as Markdown.

    Args:
        facts: What benchmarks/studies/fashion_32/pictures.py wrote with --json.
        folder: Of the pictures, as the card links it.
        name: The checkpoint's, with which the pictures' names begin.
    """

    def picture(what: str, words: str) -> str:
        return f"{words}\n\n![{words}]({folder}/{name}-{what}.png)"

    parts = [
        "## At work",
        picture(
            "forward", "The forward process on three test images, in pixels, at the checkpoint's noise levels"
        ),
        picture(
            "reverse", f'A latent on its way under "{facts["prompt"]}", decoded, over its estimates of x_0'
        ),
        picture(
            "loss", f"The unguided denoiser's error by noise level, on {facts['loss_images']} test latents"
        ),
    ]
    if "memorisation" in facts:
        ratio, copies = (facts["memorisation"][key] for key in ("ratio", "copies"))
        parts += [
            picture("closest", "The generated images nearest to a training image, over that image"),
            f"In the judge's features, {copies['count']:,} generated images lie {interval(ratio, '.2f', 1)} "
            "times as far from their nearest training image as test images do, and "
            f"{interval(copies, '.1f', 100)}% of them are nearer than all but the nearest 1% of those. "
            "Guided images are typical images, which lie near to others: read it with the pictures.",
        ]
    return "\n\n".join(parts)
