"""CascadePipeline: one call, one folder; its stages by hand, on the command line, refusals."""

import json
import re
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, RePaintScheduler
from tiny_classifier import tiny_image_unet
from tiny_upsampler import tiny_cascade, tiny_upsampler, tiny_upsampler_unet

from guided_diffusers import CascadePipeline, GuidedDDIMScheduler, GuidedDDPMScheduler, ImagePipeline
from guided_diffusers.cli import main
from guided_diffusers.evaluation.compute import networks_of
from guided_diffusers.evaluation.sweep.sampler import PipelineSampler
from guided_diffusers.hub import inventory
from guided_diffusers.hub.card import CardFacts, model_card
from guided_diffusers.store.checkpoints import fingerprint

PROMPTS = ["a boot", "a bag"]


def generators(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def drawn(cascade, *arguments, **options):
    cascade.set_progress_bar_config(disable=True)
    return cascade(*arguments, **{"generator": generators(), "output_type": "pt", **options}).images


def test_one_call_is_its_stages_by_hand():
    cascade, generator = tiny_cascade(), generators()
    out = cascade(PROMPTS, generator=generators(), output_type="pt", return_stages=True)
    small = cascade.base(PROMPTS, num_inference_steps=2, generator=generator, output_type="pt").images
    large = cascade.upsampler(small, generator=generator, output_type="pt").images
    assert torch.equal(out.stages[0], small) and torch.equal(out.images, large)
    assert out.stages[1] is out.images and large.shape == (2, 1, 64, 64)
    images, stages = cascade(PROMPTS, generator=generators(), return_dict=False, return_stages=True)
    assert [image.size for stage in stages for image in stage] == [(16, 16)] * 2 + [(64, 64)] * 2
    assert stages[1] is images and cascade("a").stages is None


def test_each_stage_has_its_own_steps_guidance_scheduler_and_seed():
    cascade = tiny_cascade()
    whole = cascade(PROMPTS, generator=generators(), output_type="pt", return_stages=True)
    own = {"num_inference_steps": 2, "augmentation_level": 0, "generator": torch.Generator().manual_seed(9)}
    other = cascade(
        PROMPTS,
        generator=generators(),
        output_type="pt",
        return_stages=True,
        stage_arguments=[None, {**own, "scheduler": GuidedDDPMScheduler()}],
    )
    assert torch.equal(other.stages[0], whole.stages[0]) and not torch.equal(other.images, whole.images)
    assert isinstance(cascade.upsampler.scheduler, GuidedDDIMScheduler)
    several = drawn(cascade, PROMPTS, num_images_per_prompt=2, generator=generators(4), guidance_scale=3.0)
    assert several.shape == (4, 1, 64, 64)
    assert torch.equal(
        drawn(cascade, PROMPTS, stage_arguments=[{"guidance_scale": 1.0}]),
        drawn(cascade, PROMPTS, guidance_scale=1.0),
    )


def test_a_folder_comes_back_to_the_bit_and_says_what_is_in_it(tmp_path):
    cascade = tiny_cascade()
    cascade.save_pretrained(tmp_path, max_shard_size="20KB")
    expected = drawn(cascade, PROMPTS)
    for loaded in (CascadePipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        assert type(loaded) is CascadePipeline and torch.equal(drawn(loaded, PROMPTS), expected)
    content = inventory(tmp_path)
    assert content["stages"] == {"base": "TextToImagePipeline", "upsampler": "UpsamplePipeline"}
    assert {"base/unet", "base/vae", "upsampler/unet"} <= {part["name"] for part in content["components"]}
    assert content["image_size"] == 64 and content["default_guidance"][0]["scale"] == 2.0
    card = str(model_card(tmp_path, "me/cascade", CardFacts(), with_code=True))
    assert "pipeline_tag: text-to-image" in card and "base_unet = " in card
    for block in re.findall("```python\n(.*?)```", card, flags=re.DOTALL):
        compile(block, "card", "exec")
    before = fingerprint(tmp_path)
    changed = tmp_path / "upsampler" / "model_index.json"
    changed.write_text(json.dumps({**json.loads(changed.read_text()), "augmentation_level": 7}))
    assert fingerprint(tmp_path) != before, "an upsampler's defaults decide pixels"
    base = tmp_path / "base" / "model_index.json"
    middle = fingerprint(tmp_path)
    base.write_text(json.dumps({**json.loads(base.read_text()), "default_guidance": None}))
    assert fingerprint(tmp_path) == middle, "the base's guidance is the call's"


def test_a_hostile_stage_is_refused(tmp_path):
    tiny_cascade().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for pair in (["guided_diffusers", "GuidedDDIMScheduler"], ["diffusers", "DDPMPipeline"]):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "upsampler": pair}))
        with pytest.raises(OSError, match="'upsampler' is a"):
            CascadePipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    stage = tmp_path / "base" / "unet"
    (stage / "diffusion_pytorch_model.safetensors").rename(stage / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="pickled weights"):
        CascadePipeline.from_pretrained(tmp_path)


def image_base(**overrides):
    unet = tiny_image_unet(**overrides)
    unet.register_to_config(sample_size=16)
    return ImagePipeline(unet, GuidedDDIMScheduler())


def test_a_base_without_prompt_draws_in_it_too():
    cascade = CascadePipeline(base=image_base(num_class_embeds=3), upsampler=tiny_upsampler(image_size=64))
    assert drawn(cascade, batch_size=2, class_labels=[0, 2], num_inference_steps=2).shape == (2, 1, 64, 64)
    with pytest.raises(ValueError, match="prompt is given, which the base .ImagePipeline. does not take"):
        drawn(cascade, "a bag")
    sampler = PipelineSampler(cascade)
    assert sampler.takes_class and not sampler.takes_text


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: [image_base()], "stages are 1; allowed: a base and 1 to 3 upsamplers"),
        (lambda: [tiny_upsampler(), tiny_upsampler()], "base is an UpsamplePipeline"),
        (lambda: [image_base(), image_base()], "upsampler is an ImagePipeline"),
        (lambda: [image_base(), tiny_upsampler(image_size=32)], "draws 16; allowed: a stage that draws 8"),
        (
            lambda: [image_base(), tiny_upsampler(unet=tiny_upsampler_unet(in_channels=6, out_channels=3))],
            "upsampler sees pictures of 3 channels, and the stage before draws 1",
        ),
        (lambda: "two", "upsampler|stages|base"),
        (lambda: None, "allowed: stages"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        CascadePipeline(stages())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": 3}, "class_labels is given, which the base"),
        ({"stage_arguments": [None, {"steps": 3}]}, "steps is given, which the upsampler"),
        ({"stage_arguments": [None, {"image": 3}]}, "image is given, which the upsampler"),
        ({"stage_arguments": [None, None, {}]}, "stage_arguments is"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"guidance_scale": "much"}, "guidance_scale"),
    ],
)
def test_arguments_that_no_stage_takes_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_cascade()("a bag", **options)


def test_a_refusal_of_the_base_stands_as_the_base_says_it():
    with pytest.raises(ValueError, match="num_inference_steps is 0") as refused:
        tiny_cascade()("a bag", num_inference_steps=0)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; .* .of the upsampler."),
        ({"augmentation_level": 351}, "augmentation_level is 351"),
        ({"eta": 2}, "eta is 2; "),
        ({"tile_size": 7}, "tile_size is 7"),
        ({"timesteps": [1, 2]}, "timesteps is .*descending"),
        ({"generator": generators(3)}, "generator is a list of 3 for 2 samples"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"scheduler": RePaintScheduler()}, "RePaintScheduler, which is not supported"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_of_a_later_stage_is_refused_before_the_base_draws(own, message):
    cascade, called, generator = tiny_cascade(), [], torch.Generator().manual_seed(0)
    cascade.base.unet.register_forward_pre_hook(lambda *_: called.append(1))
    state, scheduler = generator.get_state(), cascade.upsampler.scheduler
    with pytest.raises(ValueError, match=message) as refused:
        cascade(PROMPTS, generator=generator, stage_arguments=[None, own])
    assert str(refused.value) == f"{refused.value.__cause__} (of the upsampler)"
    assert not called and torch.equal(generator.get_state(), state)
    assert cascade.upsampler.scheduler is scheduler


def test_a_sweep_counts_and_knows_every_stage():
    cascade = tiny_cascade()
    names = set(networks_of(cascade.components))
    assert {"base.unet", "base.text_encoder", "base.vae.decoder", "upsampler.unet"} <= names
    one = PipelineSampler(cascade).identity()
    with torch.no_grad():
        next(cascade.upsampler.unet.parameters()).add_(1)
    two = PipelineSampler(cascade).identity()
    cascade.upsampler.register_to_config(augmentation_level=3)
    assert len({json.dumps(each) for each in (one, two, PipelineSampler(cascade).identity())}) == 3


def test_the_command_line_draws_with_it_and_again_from_a_picture(tmp_path, monkeypatch, capsys):
    tiny_cascade(num_inference_steps=3).save_pretrained(tmp_path / "cascade")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["guided-diffusers", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    out = run(
        "generate", "a bag", "--checkpoint", tmp_path / "cascade", "--output", tmp_path / "out", "--json"
    )
    assert out["steps"] == 3 and out["scheduler"] == "GuidedDDIMScheduler"
    path = out["images"][0]["path"]
    again = run("generate", "--from-image", path, "--output", tmp_path / "out", "--json")
    assert again["identical"] is True
    assert run("info", tmp_path / "cascade", "--json")["class"] == "CascadePipeline"
