"""The package's namespace, its shipped checkpoints and its metadata."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import guided_diffusers
from guided_diffusers.store.checkpoints import component_source, shipped

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", guided_diffusers.__all__)
def test_every_public_name_is_there_and_documented(name: str):
    value = getattr(guided_diffusers, name)
    assert value.__doc__
    assert name in dir(guided_diffusers)


@pytest.mark.parametrize("name", guided_diffusers._SUBMODULES)
def test_submodules_are_attributes(name: str):
    assert getattr(guided_diffusers, name) is import_module(f"guided_diffusers.{name}")


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"'TextToVideo'.*TextToImagePipeline"):
        guided_diffusers.TextToVideo  # noqa: B018
    assert not hasattr(guided_diffusers, "OnnxRuntimeModel")  # diffusers' loader asks for it


def test_version_is_the_distribution_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert guided_diffusers.__version__ == project["version"] == metadata.version("guided-diffusers")


def test_constraints_pin_what_users_get_ranges_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(item for extra in extras.values() for item in extra)]
    names = {re.match(r"[A-Za-z0-9_.-]+", item)[0].lower().replace("_", "-") for item in wanted}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names - {"guided-diffusers"} <= pinned


def test_the_modules_that_moved_are_where_the_changelog_says():
    text = (ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"^\| `(guided_diffusers[\w.]+)`[^|]*\|([^|]+)\|$", text, flags=re.MULTILINE)
    assert len(rows) > 10
    for old, new in rows:
        assert all(find_spec(name) for name in re.findall(r"`(guided_diffusers[\w.]+)`", new)), new
        assert find_spec(old) is None or f"{old}." in new, old  # gone, or a package now


def test_pretrained_gives_the_folder_of_a_shipped_checkpoint():
    folder = guided_diffusers.pretrained("fashion-32")
    assert (folder / "model_index.json").is_file()
    assert "fashion-32" in shipped()


def test_pretrained_refuses_what_does_not_ship():
    with pytest.raises(ValueError, match="name='fashion-64'.*fashion-32"):
        guided_diffusers.pretrained("fashion-64")
    with pytest.raises(ValueError, match="name='../checkpoints_data/fashion-32'"):
        guided_diffusers.pretrained("../checkpoints_data/fashion-32")
    with pytest.raises(TypeError, match="name must be a string"):
        guided_diffusers.pretrained(32)


def test_a_component_is_sought_as_a_folder_then_as_shipped_then_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped_vae = str(guided_diffusers.pretrained("fashion-32") / "vae")
    assert component_source("fashion-32/vae") == shipped_vae
    assert component_source("somebody/vae") == "somebody/vae"
    with pytest.raises(ValueError, match="'fashion-32/decoder' .* allowed: .*fashion-32/vae"):
        component_source("fashion-32/decoder")
    (tmp_path / "fashion-32" / "vae").mkdir(parents=True)
    assert component_source("fashion-32/vae") == "fashion-32/vae"


def test_shipped_checkpoints_are_small_and_hold_no_pickle():
    folder = Path(guided_diffusers.__file__).parent / "checkpoints_data"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert max(path.stat().st_size for path in files) <= 20e6
    assert sum(path.stat().st_size for path in files) <= 24e6
