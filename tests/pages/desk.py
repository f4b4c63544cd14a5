"""A folder to read the pages in: what a fresh clone has, a little data, untrained networks if asked for."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pages.blocks import ROOT, blocks_of
from pages.declared import PAGES, SOURCE, UNTRAINED, replaced
from training_scripts import load, read

LINKED = ("Makefile", "benchmarks", "docs", "model_cards", "pipelines", "pyproject.toml", "src", "training")
TRAINING_ROWS, TEST_ROWS = 192, 64  # of 32 images each, no image in both


def lay_out(folder: Path) -> Path:
    """A clone without data, the YAML files that the pages ask for, and what the data are made of."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for block in (block for page in PAGES for block in blocks_of(page)):
        if block.file is not None:
            (folder / block.file).write_text(replaced(block.code))
    _write_idx_files(folder / SOURCE)
    return folder


def _write_idx_files(folder: Path) -> None:
    import pyarrow.parquet as parquet
    from PIL import Image

    rows = parquet.read_table(ROOT / "tests" / "data" / "fashion_slice.parquet").to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    images, labels = images[:, 2:-2, 2:-2], np.array([row["label"] for row in rows], dtype=np.uint8)
    folder.mkdir()
    by_class = labels.argsort(kind="stable")  # by turns to either split, so that both show every class
    for split, count, part in (("train", TRAINING_ROWS, by_class[::2]), ("t10k", TEST_ROWS, by_class[1::2])):
        chosen = np.resize(part, count)
        for kind, values in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen])):
            header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))


def furnish(folder: Path) -> None:
    """What the commands of train.md would have made, as new networks, and the data."""
    makers = {"train_unconditional": _denoiser, "train_autoencoder": _autoencoder}
    makers |= {"train_upsampler": _upsampler}
    makers |= {"train_classifier": _classifier, "train_clip": _clip}
    data = load("data/fashion_mnist")
    (folder / "data" / "fashion").mkdir(parents=True)
    for split in ("train", "test"):
        data.build(folder / SOURCE, split).to_parquet(folder / "data" / "fashion" / f"{split}.parquet")
    for target, config in UNTRAINED.items():
        path = ROOT / "training" / "configs" / f"{config}.yaml"
        command = f".py --config training/configs/{path.name}"  # each configuration says which it is for
        name = next(name for name in makers if f"{name}{command}" in path.read_text())
        makers[name](load(name), ["--config", str(path)], folder / target, data)


def publish(folder: Path) -> None:
    """New, small networks under the names of large ones on the Hub, so that a page can load them."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    from guided_diffusers import pretrained

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    classes = {"id2label": {0: "sandal", 1: "cowboy boot"}, "label2id": {"sandal": 0, "cowboy boot": 1}}
    vit = ViTForImageClassification(ViTConfig(**small, **classes, image_size=32, patch_size=16))
    size = {"height": 32, "width": 32}
    for part in (vit, ViTImageProcessor(size=size)):
        part.save_pretrained(folder / "google" / "vit-base-patch16-224")
    tokenizer = CLIPTokenizer.from_pretrained(pretrained("fashion-32") / "tokenizer")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 16}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for part in (
        clip,
        CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), tokenizer),
    ):
        part.save_pretrained(folder / "openai" / "clip-vit-base-patch32")


def _denoiser(module: ModuleType, words: list[str], folder: Path, data: ModuleType) -> None:
    from diffusers import DDPMPipeline

    from guided_diffusers import GuidedDDPMScheduler, ImagePipeline
    from guided_diffusers.training.data.images import load_autoencoder

    config = read(module, *words)
    scheduler, vae = GuidedDDPMScheduler(**config.scheduler), load_autoencoder(config.autoencoder)
    learned = scheduler.config.variance_type.startswith("learned")
    unet = module.make_unet(config, vae, learned, None if config.label_column is None else len(data.CLASSES))
    pipeline = DDPMPipeline(unet, scheduler) if vae is None else ImagePipeline(unet, scheduler, vae)
    pipeline.save_pretrained(folder)


def _upsampler(module: ModuleType, words: list[str], folder: Path, data: ModuleType) -> None:
    from guided_diffusers import UpsamplePipeline
    from guided_diffusers.training.engine.setup import make_scheduler

    config = read(module, *words)
    UpsamplePipeline(
        module.make_unet(config, None, None, None, False),
        make_scheduler(config.scheduler, config.scheduler_arguments),
        config.augmentation.scheduler,
        scale=config.scale,
        image_size=config.data.resolution,
    ).save_pretrained(folder)


def _autoencoder(module: ModuleType, words: list[str], folder: Path, data: ModuleType) -> None:
    module.make_autoencoder(read(module, *words)).save_pretrained(folder)


def _classifier(module: ModuleType, words: list[str], folder: Path, data: ModuleType) -> None:
    config = read(module, *words)
    sizes = {"num_classes": len(data.CLASSES), "id2label": dict(enumerate(data.CLASSES))}
    module.make_classifier(config, _latent_shape(config), sizes).save_pretrained(folder)


def _clip(module: ModuleType, words: list[str], folder: Path, data: ModuleType) -> None:
    from guided_diffusers.schedulers import describe_process
    from guided_diffusers.training.engine.setup import make_scheduler

    config = read(module, *words)
    process = describe_process(make_scheduler(config.scheduler, config.scheduler_arguments))
    captions = [caption for name in data.CLASSES for caption in data.captions(name)]
    for part in module.make_clip(config, captions, _latent_shape(config), process):
        part.save_pretrained(folder)


def _latent_shape(config: Any) -> tuple[int, ...]:
    from guided_diffusers.training.data.images import load_autoencoder

    return load_autoencoder(config.autoencoder).latent_shape(config.data.resolution, config.data.resolution)
