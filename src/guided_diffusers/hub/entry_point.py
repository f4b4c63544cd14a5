"""The files by which diffusers, where this package was never imported, finds a checkpoint's classes.

`DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)` runs a `pipeline.py` if
model_index.json says `"_class_name": ["pipeline", "Class"]`, and `<component>/<library>.py` for a component
of a library that it does not know. Both are shims onto this package here: the code is installed and not
downloaded, and where it is not installed, they say what to install. All of a machine's local shims share
one namespace, hence one text for all components.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

LIBRARY = "guided_diffusers"
PIPELINE_FILE = "pipeline.py"
COMPONENT_FILE = f"{LIBRARY}.py"

_PIPELINE = '''"""The Hub's entry point to `guided_diffusers.{name}`.

It needs `pip install guided-diffusers`. It is for
`DiffusionPipeline.from_pretrained(checkpoint, trust_remote_code=True)`, where this file lies beside the
checkpoint; and with `custom_pipeline=<this file's folder>` for any other.
"""

# diffusers runs every local folder's pipeline.py in one module and wants exactly one pipeline in it: what an
# earlier one left there has to go.
for _name in [_name for _name, _value in globals().items() if isinstance(_value, type)]:
    del globals()[_name]

try:
    from guided_diffusers import {name}
except ImportError as error:
    _need = "this checkpoint needs the package guided-diffusers: pip install -U guided-diffusers"
    raise ImportError(_need) from error

__all__ = ["{name}"]
'''

_COMPONENT = '''"""The Hub's way to classes of `guided_diffusers`; needs `pip install guided-diffusers`."""


def __getattr__(name):
    try:
        import guided_diffusers
    except ImportError as error:
        need = "this checkpoint needs the package guided-diffusers: pip install -U guided-diffusers"
        raise ImportError(need) from error
    return getattr(guided_diffusers, name)
'''


def pipeline_file(name: str) -> str:
    """The text of pipeline.py for a pipeline of this package; also that of the repository's pipelines/."""
    return _PIPELINE.format(name=name)


def plain_class_name(index: Mapping[str, Any]) -> str:
    """The pipeline's class in model_index.json, with or without code."""
    name = index.get("_class_name")
    return str(name[1] if isinstance(name, list | tuple) and len(name) == 2 else name)


def entry_point(index: Mapping[str, Any]) -> dict[str, bytes]:
    """The files to add to a checkpoint, by path, model_index.json among them.

    Args:
        index: The content of model_index.json.

    Raises:
        ValueError: The pipeline is not one of this package's.
    """
    name = plain_class_name(index)
    if not (name.isidentifier() and hasattr(import_module(LIBRARY), name)):
        raise ValueError(
            f"with_code needs a pipeline of guided_diffusers, and this is {name}: it needs no code"
        )
    text = json.dumps({**index, "_class_name": ["pipeline", name]}, indent=2, sort_keys=True) + "\n"
    files = {"model_index.json": text.encode(), PIPELINE_FILE: pipeline_file(name).encode()}
    for component, value in index.items():
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == LIBRARY:
            files[f"{component}/{COMPONENT_FILE}"] = _COMPONENT.encode()
    return files
