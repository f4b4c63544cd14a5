"""Losses of the predicted image to steer by: classifiers, CLIP, features, measurements.

Each is the `loss` of a `guidance.LossGuidance`:

| known | loss |
|---|---|
| a class | `ClassLoss(model, processor, labels)`, any image classifier of transformers |
| a text | `TextLoss(model, processor, text)`, a CLIPModel |
| an image to resemble | `FeatureLoss(features, target)` |
| a part or a blurred, smaller picture of the image | `Measurement(operator, observed, deviation)` |
| anything else | a function or torch module, `images -> (batch,)` |
"""

from guided_diffusers.steering.measurement import Measurement, blurred, downsampled, masked
from guided_diffusers.steering.networks import ClassLoss, FeatureLoss, TextLoss, decoder
from guided_diffusers.steering.preprocessing import Preprocessing

__all__ = [
    "ClassLoss",
    "FeatureLoss",
    "Measurement",
    "Preprocessing",
    "TextLoss",
    "blurred",
    "decoder",
    "downsampled",
    "masked",
]
