"""The Hub's entry point to `guided_diffusers.ClassifierGuidedTextToImagePipeline`.

It needs `pip install guided-diffusers`.
For `DiffusionPipeline.from_pretrained(checkpoint, custom_pipeline=<this folder>, trust_remote_code=True)`.
"""

# diffusers runs every local folder's pipeline.py in one module and wants exactly one pipeline in it: what an
# earlier one left there has to go.
for _name in [_name for _name, _value in globals().items() if isinstance(_value, type)]:
    del globals()[_name]

from guided_diffusers import ClassifierGuidedTextToImagePipeline  # noqa: E402

__all__ = ["ClassifierGuidedTextToImagePipeline"]
