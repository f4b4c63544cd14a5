"""What StableDiffusionPipeline loads beside its components, TextToImagePipeline draws the same with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from safetensors.torch import save_file
from tiny import stable_diffusion_schedule, tiny_components
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from guided_diffusers import TextToImagePipeline
from guided_diffusers.guidance import ProjectedGuidance

BLOCKS = {"block_out_channels": (4, 8), "latent_channels": 2, "norm_num_groups": 2}
BLOCKS |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
VISION = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def components() -> dict[str, Any]:
    torch.manual_seed(0)
    scheduler = stable_diffusion_schedule(DDIMScheduler, clip_sample=False)
    return tiny_components(vae=AutoencoderKL(**BLOCKS), scheduler=scheduler)


@pytest.fixture
def pair() -> tuple[StableDiffusionPipeline, TextToImagePipeline]:
    """The reference and ours, each of parts of its own."""
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipes = tuple(cls(**components(), **optional) for cls in (StableDiffusionPipeline, TextToImagePipeline))
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes


def drawn(pipe: Any, prompt: Any = "a boot", **arguments: Any) -> Tensor:
    given = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent", **arguments}
    return pipe(prompt, generator=torch.Generator().manual_seed(5), **given).images


def check_alike(pair: tuple[Any, Any], other_than: Tensor, **arguments: Any) -> None:
    theirs, ours = (drawn(pipe, **arguments) for pipe in pair)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (theirs - other_than).abs().max() > 1e-3, "what was loaded changes nothing"


def lora_of(pipe: Any) -> dict[str, Tensor]:
    """Random LoRA layers of the attention of both networks."""
    weights = {}
    for part, names in (("unet", ("to_q", "to_v")), ("text_encoder", ("q_proj", "v_proj"))):
        for name, module in getattr(pipe, part).named_modules():
            if name.endswith(names):
                outputs, inputs = module.weight.shape
                weights[f"{part}.{name}.lora_A.weight"] = random(2, inputs, seed=len(weights))
                weights[f"{part}.{name}.lora_B.weight"] = random(outputs, 2, seed=len(weights))
    return weights


def test_lora(pair, tmp_path):
    pytest.importorskip("peft")
    plain = drawn(pair[0])
    save_file(lora_of(pair[0]), tmp_path / "lora.safetensors")
    for pipe in pair:
        pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    check_alike(pair, plain)
    whole = drawn(pair[0])
    check_alike(pair, whole, cross_attention_kwargs={"scale": 0.5})
    for pipe in pair:
        pipe.fuse_lora()
    torch.testing.assert_close(drawn(pair[1]), whole, rtol=0, atol=1e-4)
    for pipe in pair:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    torch.testing.assert_close(drawn(pair[1]), plain, rtol=0, atol=1e-5)


def test_a_lora_is_drawn_with_without_the_dropout_of_its_training(pair, tmp_path):
    peft = pytest.importorskip("peft")
    layers = {f"{part}_lora_layers": {} for part in ("unet", "text_encoder")}
    for name, value in lora_of(pair[1]).items():
        part, _, key = name.partition(".")
        layers[f"{part}_lora_layers"][key] = value
    for part, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        config = peft.LoraConfig(r=2, lora_alpha=2, lora_dropout=0.5, target_modules=targets)
        layers[f"{part}_lora_adapter_metadata"] = config.to_dict()
    TextToImagePipeline.save_lora_weights(tmp_path, **layers)
    pair[1].load_lora_weights(tmp_path)
    assert pair[1].unet.peft_config["default_0"].lora_dropout == 0.5
    assert torch.equal(drawn(pair[1]), drawn(pair[1]))


def test_textual_inversion(pair, tmp_path):
    width = pair[0].text_encoder.config.hidden_size
    save_file({"<toy>": 3 * random(3, width)}, tmp_path / "toy.safetensors")
    for pipe in pair:
        pipe.load_textual_inversion(tmp_path, weight_name="toy.safetensors")
    check_alike(pair, drawn(pair[0]), prompt="a <toy>", negative_prompt="a boot")


def with_ip_adapter(pipe: Any) -> Any:
    """The pipeline with an image encoder and a random IP-Adapter of four tokens."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(**VISION, image_size=8, patch_size=4, projection_dim=8)
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
    )
    width, adapter = pipe.unet.config.cross_attention_dim, {}
    attentions = [n for n in pipe.unet.attn_processors if n.endswith("attn2.processor")]
    for place, name in enumerate(attentions):
        hidden = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        weights = IPAdapterAttnProcessor2_0(hidden, width, num_tokens=4).state_dict()
        for key in ("to_k_ip", "to_v_ip"):
            adapter[f"{2 * place + 1}.{key}.weight"] = 10 * weights[f"{key}.0.weight"]
    projection = {"proj.weight": random(4 * width, 8), "proj.bias": random(4 * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    pipe.load_ip_adapter({"image_proj": projection, "ip_adapter": adapter}, "", "none.safetensors")
    return pipe


def test_ip_adapter(pair):
    plain = drawn(pair[0])
    for pipe in pair:
        with_ip_adapter(pipe)
    image = random(1, 3, 8, 8)
    check_alike(pair, plain, ip_adapter_image=image)
    check_alike(pair, plain, ip_adapter_image=image, guidance_scale=1.0)
    both = torch.cat([torch.zeros(1, 1, 8), random(1, 1, 8)])
    check_alike(pair, drawn(pair[0], ip_adapter_image=image), ip_adapter_image_embeds=[both])
    new = {"guidance": ProjectedGuidance(5.0), "ip_adapter_image": image}
    guided = drawn(pair[1], ["a boot", "a bag"], guidance_scale=None, **new)
    assert guided.isfinite().all()
    with pytest.raises(ValueError, match="no ip_adapter_image given, and an IP-Adapter is loaded"):
        drawn(pair[1])
    for pipe in pair:
        pipe.unload_ip_adapter()
    torch.testing.assert_close(drawn(pair[1]), plain, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="ip_adapter_image is given, and no IP-Adapter is loaded"):
        drawn(pair[1], ip_adapter_image=image)


def test_a_single_file(pair, tmp_path):
    """One of the denoiser's weights alone; the other parts are given."""
    pair[0].save_pretrained(tmp_path / "config")
    save_file(pair[0].unet.state_dict(), tmp_path / "one.safetensors")
    others = {name: getattr(pair[0], name) for name in ("vae", "text_encoder", "tokenizer")}
    one = TextToImagePipeline.from_single_file(
        tmp_path / "one.safetensors", config=str(tmp_path / "config"), local_files_only=True, **others
    )
    one.set_progress_bar_config(disable=True)
    assert type(one) is TextToImagePipeline and one.unet is not pair[0].unet
    torch.testing.assert_close(drawn(one), drawn(pair[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "load",
    [
        lambda pipe: pipe.load_lora_weights("lora.bin"),
        lambda pipe: pipe.load_lora_weights("folder", weight_name="lora.pt"),
        lambda pipe: pipe.load_textual_inversion("toy.pt"),
        lambda pipe: pipe.load_ip_adapter("folder", "models", ["a.safetensors", "b.bin"]),
        lambda pipe: pipe.from_single_file("model.ckpt"),
    ],
)
def test_a_pickle_is_refused(pair, load):
    with pytest.raises(ValueError, match="is a pickle, which may run code; allowed: a .safetensors file"):
        load(pair[1])
