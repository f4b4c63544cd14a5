"""Classifiers, CLIP and feature networks as losses: what transformers says of the same pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    SiglipImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from guided_diffusers import NoiseLevel, pretrained
from guided_diffusers.guidance import LossGuidance
from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.steering import ClassLoss, FeatureLoss, Preprocessing, TextLoss, decoder

PROCESSORS = {
    "ViT": ViTImageProcessor(size={"height": 24, "width": 20}),
    "CLIP": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 20, "width": 20}),
    "CLIP, larger": CLIPImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 72, "width": 100}),
    "DeiT": DeiTImageProcessor(size={"height": 24, "width": 24}, crop_size={"height": 32, "width": 16}),
    "SigLIP": SiglipImageProcessor(size={"height": 20, "width": 20}, do_normalize=False),
    "ConvNeXT": ConvNextImageProcessor(size={"shortest_edge": 28}),
    "nothing": ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False),
}


def pictures(count=2, height=56, width=40):
    """Smooth colour pictures, `(count, 3, height, width)` uint8."""
    rough = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 200 + 25
    smooth = F.interpolate(rough, (height, width), mode="bicubic", align_corners=True)
    return smooth.clamp(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixel_values_are_the_processors_up_to_rounding(name):
    processor, images = PROCESSORS[name], pictures()
    of_pil = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images]
    expected = torch.as_tensor(np.stack(processor(of_pil)["pixel_values"])).float()
    ours = Preprocessing(processor)(images / 127.5 - 1)
    level = 1 / 255 if processor.do_rescale else 1.0
    rounding = 1.1 * level / (min(processor.image_std) if processor.do_normalize else 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=rounding)


def test_a_processor_that_does_something_else_is_named():
    with pytest.raises(ValueError, match="processor has include_top, which is not known here"):
        Preprocessing(EfficientNetImageProcessor())
    with pytest.raises(ValueError, match="processor is 3; allowed: an image processor of transformers"):
        Preprocessing(3)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {0: "coat", 1: "bag", 2: "boot"}
    config = ViTConfig(**size, image_size=16, patch_size=8, id2label=names)
    return ViTForImageClassification(config).eval()


def test_a_classifiers_loss_is_minus_its_log_probability(vit):
    processor, images = ViTImageProcessor(size={"height": 16, "width": 16}), pictures(2, 16, 16)
    pixels = processor(list(images), return_tensors="pt", input_data_format="channels_first").pixel_values
    expected = -vit(pixel_values=pixels).logits.log_softmax(1)[torch.arange(2), torch.tensor([1, 2])]
    loss = ClassLoss(vit, processor, ["bag", "boot"])
    torch.testing.assert_close(loss(images / 127.5 - 1), expected)
    by_function = ClassLoss(vit, lambda images: images, torch.tensor([1, 2]))
    torch.testing.assert_close(by_function(images / 127.5 - 1), expected)


def test_grey_images_are_given_three_channels(vit):
    grey = (pictures(1, 16, 16)[:, :1] / 127.5 - 1).requires_grad_()
    loss = ClassLoss(vit, ViTImageProcessor(size={"height": 16, "width": 16}), "coat")
    torch.testing.assert_close(loss(grey), loss(grey.expand(-1, 3, -1, -1)))
    assert torch.autograd.grad(loss(grey).sum(), grey)[0].abs().min() > 0


def test_a_model_that_drops_out_or_does_not_know_a_class_is_refused(vit):
    with pytest.raises(ValueError, match="which is no class; did you mean 'coat'"):
        ClassLoss(vit, ViTImageProcessor(), "coats")
    with pytest.raises(ValueError, match="is in training mode; allowed: model.eval()"):
        ClassLoss(ViTForImageClassification(vit.config).train(), ViTImageProcessor(), 0)


def test_a_texts_loss_is_minus_the_logits_of_clip():
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(pretrained("fashion-32") / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    model, texts = CLIPModel(config).eval(), ["a photo of a coat", "a photo of a bag"]

    class Processor:
        image_processor = CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        )

    Processor.tokenizer, images = tokenizer, pictures(2, 16, 16)
    tokens = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    pixels = Processor.image_processor(
        list(images), return_tensors="pt", input_data_format="channels_first"
    ).pixel_values
    expected = -model(**tokens, pixel_values=pixels).logits_per_image.diagonal()
    torch.testing.assert_close(TextLoss(model, Processor, texts)(images / 127.5 - 1), expected)
    one_for_all = TextLoss(model, Processor, texts[0])(images / 127.5 - 1)
    torch.testing.assert_close(one_for_all[0], expected[0])


class Maps:
    """Feature maps that are the images and their differences."""

    def feature_maps(self, images):
        return [images, images.diff(dim=3)]


def test_a_feature_distance_is_an_images_own():
    images, target = torch.randn(3, 3, 8, 8), torch.randn(1, 3, 8, 8)
    together = FeatureLoss(Maps(), target)(images)
    alone = torch.cat([FeatureLoss(Maps(), target)(images[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone)
    assert together.min() > 0.1 and FeatureLoss(Maps(), images)(images).abs().max() < 1e-6


def test_through_the_shipped_autoencoder_latents_come_to_look_like_a_picture():
    vae = VariationalAutoencoder.from_pretrained(pretrained("fashion-32"), subfolder="vae")
    target, decode = pictures(1, 32, 32)[:, :1].float() / 127.5 - 1, decoder(vae)
    latents = torch.zeros(1, 4, 8, 8)
    term = LossGuidance(lambda images: (images - target).square().flatten(1).sum(1), 0.05, decode=decode)
    moved = term(lambda sample, level, condition: sample)(latents, NoiseLevel(alpha=0.5, sigma=0.8))
    assert (decode(moved) - target).square().mean() < 0.9 * (decode(latents) - target).square().mean()
