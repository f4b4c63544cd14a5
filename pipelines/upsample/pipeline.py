"""The Hub's entry point to `guided_diffusers.UpsamplePipeline`.

It needs `pip install guided-diffusers`. It is for
`DiffusionPipeline.from_pretrained(checkpoint, trust_remote_code=True)`, where this file lies beside the
checkpoint; and with `custom_pipeline=<this file's folder>` for any other.
"""

# diffusers runs every local folder's pipeline.py in one module and wants exactly one pipeline in it: what an
# earlier one left there has to go.
for _name in [_name for _name, _value in globals().items() if isinstance(_value, type)]:
    del globals()[_name]

try:
    from guided_diffusers import UpsamplePipeline
except ImportError as error:
    _need = "this checkpoint needs the package guided-diffusers: pip install -U guided-diffusers"
    raise ImportError(_need) from error

__all__ = ["UpsamplePipeline"]
