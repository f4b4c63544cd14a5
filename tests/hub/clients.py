"""Fresh processes that talk to the Hub: each runs a function of this module's, and prints what it returns.

`python -m hub.clients FUNCTION [ARGUMENTS]`, with an environment of `Hub.environment`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def aligned(module: torch.nn.Module) -> torch.nn.Module:
    """The module with weights where torch itself would put them.

    Loaded ones lie as the file has them, and some processors then take another way through a sum.
    """
    for weight in [*module.parameters(), *module.buffers()]:
        weight.data = weight.data.clone()
    return module


def drawn(pipeline: Any) -> str:
    """A name of what a pipeline draws, from a fixed seed."""
    from guided_diffusers.evaluation.compute import all_components

    for part in all_components(pipeline.components).values():
        if isinstance(part, torch.nn.Module):
            aligned(part)
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(3)]
    first = (["a bag"],) if hasattr(getattr(pipeline, "base", pipeline), "text_encoder") else ()
    images = pipeline(*first, num_inference_steps=2, generator=generator, output_type="pt").images
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def reconstructed(autoencoder: Any) -> str:
    """A name of what an autoencoder makes of a fixed image."""
    image = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    with torch.no_grad():
        output = aligned(autoencoder).eval().decode(autoencoder.encode(image).latent_dist.mode()).sample
    return hashlib.sha256(output.contiguous().numpy().tobytes()).hexdigest()


def tiny_text_to_image(seed: int = 0) -> Any:
    from tiny import tiny_components

    from guided_diffusers import TextToImagePipeline

    parts = tiny_components(seed)
    return TextToImagePipeline(**parts, requires_safety_checker=False, default_guidance=2.0)


def tiny_image_pipeline() -> Any:
    from tiny import shallow_unet

    from guided_diffusers import GuidedDDPMScheduler, ImagePipeline

    torch.manual_seed(1)
    return ImagePipeline(shallow_unet().eval(), GuidedDDPMScheduler(num_train_timesteps=12))


def push_all(origin: str) -> dict[str, Any]:
    """Push every pipeline and model, plain and in variants; what each gives, by the repository's name."""
    from huggingface_hub import HfApi

    pipeline, result = tiny_text_to_image(), {}
    images, autoencoder = tiny_image_pipeline(), pipeline.vae
    result["outputs"] = {
        "alice/text": drawn(pipeline),
        "alice/images": drawn(images),
        "alice/vae": reconstructed(autoencoder),
    }
    from tiny_upsampler import tiny_cascade

    result["outputs"]["alice/cascade"] = drawn(cascade := tiny_cascade())
    cascade.push_to_hub("alice/cascade", with_code=True, max_shard_size="20KB")
    first = pipeline.push_to_hub("alice/text")
    pipeline.push_to_hub("alice/code", with_code=True)
    images.push_to_hub("alice/images", private=True)
    images.push_to_hub("alice/code-images", with_code=True)
    autoencoder.push_to_hub("alice/vae", max_shard_size="8KB")
    pipeline.save_pretrained(Path(origin) / "saved", push_to_hub=True, repo_id="alice/saved", private=True)
    result["again"] = pipeline.push_to_hub("alice/text").changed
    half = tiny_text_to_image().to(torch.float16)
    half.push_to_hub("alice/text", variant="fp16")
    other = tiny_text_to_image(seed=7)
    result["outputs"]["dev"] = drawn(other)
    other.push_to_hub("alice/text", revision="dev")
    result["first"] = [first.changed, first.oid, first.commit_url]
    result["branches"] = sorted(ref.name for ref in HfApi().list_repo_refs("alice/text").branches)
    return result


def pull_all(folder: str) -> dict[str, Any]:
    """Pull them again, in a process and a cache that have not seen them; push one back as it came."""
    from diffusers import DiffusionPipeline

    from guided_diffusers import (
        CascadePipeline,
        ImagePipeline,
        TextToImagePipeline,
        VariationalAutoencoder,
    )
    from guided_diffusers.hub import pull
    from guided_diffusers.training.data.images import load_autoencoder

    text = TextToImagePipeline.from_pretrained("alice/text")
    with_code = TextToImagePipeline.from_pretrained("alice/code")
    result = {
        "alice/text": drawn(text),
        "alice/images": drawn(ImagePipeline.from_pretrained("alice/images")),
        "alice/vae": reconstructed(VariationalAutoencoder.from_pretrained("alice/vae")),
        "alice/cascade": drawn(CascadePipeline.from_pretrained("alice/cascade")),
        "plain cascade": drawn(DiffusionPipeline.from_pretrained("alice/cascade", trust_remote_code=True)),
        "pulled cascade": drawn(CascadePipeline.from_pretrained(pull("alice/cascade", Path(folder) / "two"))),
        "with code": drawn(with_code),
        "dev": drawn(TextToImagePipeline.from_pretrained("alice/text", revision="dev")),
        "folder": drawn(TextToImagePipeline.from_pretrained(pull("alice/text", Path(folder) / "text"))),
        "plain folder": drawn(DiffusionPipeline.from_pretrained(Path(folder) / "text")),
        "plain hub": drawn(DiffusionPipeline.from_pretrained("alice/text")),
        "saved": drawn(TextToImagePipeline.from_pretrained("alice/saved")),
    }
    names = ("alice/vae", "alice/text", "alice/text/vae")
    result["parts"] = [reconstructed(load_autoencoder(name)) for name in names]
    variant = TextToImagePipeline.from_pretrained("alice/text", variant="fp16", torch_dtype=torch.float16)
    result["fp16"] = str(variant.unet.dtype)
    result["name"] = text.config._name_or_path
    result["pushed back"] = [
        text.push_to_hub("alice/text").changed,
        with_code.push_to_hub("alice/code", with_code=True).changed,
        VariationalAutoencoder.from_pretrained("alice/vae")
        .push_to_hub("alice/vae", max_shard_size="8KB")
        .changed,
    ]
    return result


def generic_loader() -> dict[str, Any]:
    """diffusers' own loader, where this package was never imported; before that, as if it were not there."""
    from diffusers import DiffusionPipeline

    class Absent:
        def find_spec(self, name: str, *arguments: Any) -> None:
            if name.split(".")[0] == "guided_diffusers":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def load(name: str, **arguments: Any) -> Any:
        return DiffusionPipeline.from_pretrained(name, **arguments)

    result, absent = {}, Absent()
    result["untrusted"] = error_of(lambda: load("alice/code"))
    sys.meta_path.insert(0, absent)
    result["absent"] = error_of(lambda: load("alice/code", trust_remote_code=True))
    sys.meta_path.remove(absent)
    result["imported before"] = "guided_diffusers" in sys.modules
    for name in ("alice/code", "alice/code-images", "alice/code"):
        pipeline = load(name, trust_remote_code=True)
        result[name] = [type(pipeline).__module__, drawn(pipeline)]
    return result


def everything_back(folder: str) -> dict[str, Any]:
    """The generic loader's, and then, imported, our own: one process, for imports are most of the time."""
    return {"generic": generic_loader(), "pulled": pull_all(folder), "commands": commands(Path(folder))}


def commands(folder: Path) -> dict[str, list[Any]]:
    """The command line's answers: exit code, standard output, standard error."""
    from guided_diffusers.cli import main

    def run(*words: object) -> list[Any]:
        sys.argv = ["guided-diffusers", *map(str, words)]
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main()
            except SystemExit as ended:
                return [ended.code or 0, output.getvalue(), errors.getvalue()]

    return {
        "pull": run("pull", "alice/images", folder / "by-command", "--json"),
        "push": run("push", folder / "by-command", "alice/again", "--private", "--message", "by command"),
        "push again": run("push", folder / "by-command", "alice/again"),
        "info": run("info", "alice/again", "--json"),
        "generate": run(
            *("generate", "a", "--checkpoint", "alice/text", "--revision", "dev", "--steps", 1),
            *("--output", folder / "drawn", "--no-grid", "--json"),
        ),
        "generate again": run(
            *("generate", "--from-image", folder / "drawn" / "00-a-seed0-00.png"),
            *("--output", folder / "drawn", "--json"),
        ),
        "missing repository": run("pull", "alice/nothing", folder / "new"),
        "missing revision": run("info", "alice/images", "--revision", "nope"),
        "wrong token": run("push", folder / "by-command", "alice/again", "--token", "hf_wrong"),
    }


def failures(home: str) -> dict[str, str]:
    """What a user gets who asks for what is not there; run without a token."""
    from guided_diffusers import TextToImagePipeline, VariationalAutoencoder
    from guided_diffusers.hub import pull

    pipeline = tiny_image_pipeline()
    cases: dict[str, Callable[[], Any]] = {}
    for name, load in {
        "pipeline": TextToImagePipeline.from_pretrained,
        "model": VariationalAutoencoder.from_pretrained,
        "pull": lambda repo, **more: pull(repo, Path(home) / "pulled", **more),
    }.items():
        repo = "alice/vae" if name == "model" else "alice/text"
        cases[f"{name}, missing repository"] = lambda load=load: load("alice/nothing")
        cases[f"{name}, missing revision"] = lambda load=load, repo=repo: load(repo, revision="nope")
        cases[f"{name}, private"] = lambda load=load: load("alice/saved")
        cases[f"{name}, wrong token"] = lambda load=load, repo=repo: load(repo, token="hf_wrong")
        cases[f"{name}, impossible name"] = lambda load=load: load("a name/with spaces")
    cases["push, wrong token"] = lambda: pipeline.push_to_hub("alice/new", token="hf_wrong")
    cases["push, no token"] = lambda: pipeline.push_to_hub("alice/new")
    cases["push, another's"] = lambda: pipeline.push_to_hub("alice/text", token="hf_bob_write")
    cases["push, token that reads"] = lambda: pipeline.push_to_hub("alice/new", token="hf_alice_read")
    return {name: error_of(case) for name, case in cases.items()}


def no_network(home: str) -> dict[str, str]:
    """The same where nothing answers."""
    from guided_diffusers import TextToImagePipeline, VariationalAutoencoder
    from guided_diffusers.hub import pull

    return {
        "pipeline": error_of(lambda: TextToImagePipeline.from_pretrained("alice/text")),
        "model": error_of(lambda: VariationalAutoencoder.from_pretrained("alice/vae")),
        "pull": error_of(lambda: pull("alice/text", Path(home) / "pulled")),
        "push": error_of(lambda: tiny_image_pipeline().push_to_hub("alice/new")),
    }


def train_and_push(folder: str, repo: str, seconds: str) -> dict[str, Any]:
    """Train a tiny pipeline, a batch each so many seconds, and push each export; what the log said."""
    import logging
    import time

    from training.conftest import Denoising

    from guided_diffusers import GuidedDDPMScheduler, ImagePipeline
    from guided_diffusers.training.engine.config import TrainingConfig
    from guided_diffusers.training.engine.trainer import train

    class Drawing(Denoising):
        def batch(self, indices: list[int], positions: list[int]) -> Any:
            time.sleep(float(seconds))
            return super().batch(indices, positions)

        def save(self, folder: Path, modules: Any) -> None:
            ImagePipeline(modules["unet"], GuidedDDPMScheduler()).save_pretrained(folder)

    config = TrainingConfig(
        output_dir=folder,
        num_images=160,
        batch_size=8,
        warmup_images=16,
        export_every_images=8,
        checkpoint_every_images=0,
        validate_every_images=0,
        push_to_hub=None if repo == "none" else repo,
        push_wait_seconds=60,
    )
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("guided_diffusers.training.engine.publish")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    train(Drawing(config), config)
    return {"lines": lines}


def identity(pipeline: Any) -> list[Any]:
    """What tells one version from another, weights and configuration."""
    digest = hashlib.sha256()
    for _, weight in sorted(pipeline.unet.state_dict().items()):
        digest.update(weight.contiguous().numpy().tobytes())
    return [digest.hexdigest(), pipeline.scheduler.config.num_train_timesteps]


def obey() -> None:
    """Do what each line of standard input says, and answer with a line: ["ok", value] or ["error", text].

    A client that does not wait long between its attempts: the server is dead and stays so.
    """
    import time

    from guided_diffusers import ImagePipeline, TextToImagePipeline
    from guided_diffusers.hub import pull, push_folder

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.05))
    deeds: dict[str, Callable[..., Any]] = {
        "push": lambda folder, repo: push_folder(folder, repo).oid,
        "draw": lambda repo, cache: drawn(TextToImagePipeline.from_pretrained(repo, cache_dir=cache)),
        "load": lambda repo, cache: identity(ImagePipeline.from_pretrained(repo, cache_dir=cache)),
        "pull": lambda repo, folder: identity(ImagePipeline.from_pretrained(pull(repo, folder))),
    }
    print(json.dumps(["ok", "ready"]), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = ["ok", deeds[name](*arguments)]
        except Exception as error:
            answer = ["error", f"{type(error).__name__}: {error}"]
        print(json.dumps(answer), flush=True)


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = globals()[sys.argv[1]](*sys.argv[2:])
    if result is not None:
        print("RESULT", json.dumps(result))
