"""Push, delete the cache, pull in a fresh process: the same to the bit. Errors: one clear line each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub.loopback import Hub, check_store
from hub.processes import result_of, start_client

TRANSPORTS = ["lfs", pytest.param("xet", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=TRANSPORTS)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All there is, pushed by one process and pulled by another, each with an empty cache."""
    folder = tmp_path_factory.mktemp(request.param)
    hub, xet = Hub(folder / "hub"), request.param == "xet"
    pushed = result_of(start_client(hub, folder / "push", "push_all", folder, xet=xet))
    log = hub.log
    back = result_of(start_client(hub, folder / "pull", "everything_back", folder, xet=xet))
    hub.kill()
    check_store(hub.root)
    return {"hub": hub, "folder": folder, "xet": xet, "log": log, "pushed": pushed, **back}


@pytest.mark.parametrize("name", ["alice/text", "alice/images", "alice/vae", "alice/cascade", "dev"])
def test_what_comes_back_gives_the_same_to_the_bit(trip: dict[str, Any], name: str):
    assert trip["pulled"][name] == trip["pushed"]["outputs"][name]


def test_every_way_in_gives_the_same(trip: dict[str, Any]):
    for way in ("with code", "saved", "folder", "plain folder", "plain hub"):
        assert trip["pulled"][way] == trip["pushed"]["outputs"]["alice/text"], way
    assert trip["pulled"]["fp16"] == "torch.float16"
    assert trip["pulled"]["name"] == "alice/text"


def test_a_cascade_is_one_commit_and_comes_back_by_every_way_in(trip: dict[str, Any]):
    titles = [commit["title"] for commit in trip["hub"].history("alice/cascade")]
    assert titles == ["Upload CascadePipeline", "initial commit"]
    for way in ("plain cascade", "pulled cascade"):
        assert trip["pulled"][way] == trip["pushed"]["outputs"]["alice/cascade"], way


def test_a_pipelines_name_stands_for_its_autoencoder(trip: dict[str, Any]):
    assert trip["pulled"]["parts"] == [trip["pushed"]["outputs"]["alice/vae"]] * 3


def test_no_way_in_warns(trip: dict[str, Any]):
    lines = trip["stderr"].splitlines()
    assert not [line for line in lines if "Expected types" in line or "will be ignored" in line]


def test_it_went_the_way_that_it_was_to_go(trip: dict[str, Any]):
    way = "/xet/v1/xorbs" if trip["xet"] else "/lfs/"
    sent = {record["path"].split("/")[1] for record in trip["log"] if record["method"] in ("PUT", "POST")}
    assert any(record["path"].startswith(way) for record in trip["log"])
    assert ("xet" in sent) == trip["xet"]


def test_a_push_is_one_commit(trip: dict[str, Any]):
    hub, (changed, oid, url) = trip["hub"], trip["pushed"]["first"]
    titles = [commit["title"] for commit in hub.history("alice/vae")]
    assert titles == ["Upload VariationalAutoencoder", "initial commit"]
    assert [commit["title"] for commit in hub.history("alice/text")] == [
        "Upload TextToImagePipeline",  # the variant
        "Upload TextToImagePipeline",
        "initial commit",
    ]
    assert changed and url.endswith(oid)
    assert trip["pushed"]["branches"] == ["dev", "main"]


def test_pushing_what_is_there_already_makes_no_commit(trip: dict[str, Any]):
    assert trip["pushed"]["again"] is False
    assert trip["pulled"]["pushed back"] == [False, False, False]


def test_no_file_names_a_folder_of_the_machine(trip: dict[str, Any]):
    for name in ("alice/text", "alice/code", "alice/vae", "alice/saved"):
        for path, content in trip["hub"].tree(name).items():
            assert b"_name_or_path" not in content, path
            assert str(trip["folder"]).encode() not in content, path


def test_weights_are_safetensors_in_shards_and_variants(trip: dict[str, Any]):
    hub = trip["hub"]
    suffixes = {Path(path).suffix for name in ("alice/text", "alice/code") for path in hub.names(name)}
    assert suffixes <= {".safetensors", ".json", ".md", ".py", ""}
    assert {
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    } <= set(hub.names("alice/text"))
    shards = [path for path in hub.names("alice/vae") if "-of-" in path]
    assert len(shards) > 1 and "diffusion_pytorch_model.safetensors.index.json" in hub.names("alice/vae")


def test_the_generic_loader_works_where_the_package_is_not_imported(trip: dict[str, Any]):
    generic, outputs = trip["generic"], trip["pushed"]["outputs"]
    assert generic["imported before"] is False
    assert generic["alice/code"] == ["guided_diffusers.pipelines.text_to_image", outputs["alice/text"]]
    assert generic["alice/code-images"] == ["guided_diffusers.pipelines.image", outputs["alice/images"]]


def test_it_says_what_to_install_and_what_it_needs_trust_for(trip: dict[str, Any]):
    assert "pip install -U guided-diffusers" in trip["generic"]["absent"]
    assert trip["generic"]["absent"].startswith("ImportError")
    assert "trust_remote_code=True" in trip["generic"]["untrusted"]


def test_the_card_is_metadata_and_sections(trip: dict[str, Any]):
    text = trip["hub"].tree("alice/code")["README.md"].decode()
    data = yaml.safe_load(text.split("---")[1])
    assert data["pipeline_tag"] == "text-to-image" and data["library_name"] == "guided-diffusers"
    assert 'TextToImagePipeline.from_pretrained("alice/code")' in text
    assert 'DiffusionPipeline.from_pretrained("alice/code", trust_remote_code=True)' in text
    assert "ClassifierFreeGuidance, scale 2" in text
    assert "license" not in data and "## Limits" not in text  # nobody said so, and nothing is made up


def test_the_commands_push_pull_and_say_what_went_wrong(trip: dict[str, Any]):
    hub, commands = trip["hub"], trip["commands"]
    assert [commands[name][0] for name in ("pull", "push", "push again", "info")] == [0, 0, 0, 0], commands
    assert json.loads(commands["pull"][1])["folder"] == str(trip["folder"] / "by-command")
    assert commands["push"][1].startswith(hub.url)
    assert commands["push again"][1] == "nothing to push: alice/again has all of it\n"
    assert json.loads(commands["info"][1])["class"] == "ImagePipeline"
    assert [commit["title"] for commit in hub.history("alice/again")] == ["by command", "initial commit"]
    drawn, again = commands["generate"], commands["generate again"]
    assert (drawn[0], again[0]) == (0, 0), (drawn, again)
    fingerprint = json.loads(drawn[1])["fingerprint"]  # of the branch, which `again` is not told
    assert re.fullmatch("commit:[0-9a-f]{40}", fingerprint)
    assert json.loads(again[1])["fingerprint"] == fingerprint and json.loads(again[1])["identical"]
    for name in ("missing repository", "missing revision", "wrong token"):
        code, output, errors = commands[name]
        assert (code, output) == (1, ""), name
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def errors(trip: dict[str, Any]) -> dict[str, str]:
    """What goes wrong against the same Hub, and then without one."""
    hub, folder = trip["hub"], trip["folder"]
    hub.start()
    failing = start_client(
        hub, folder / "failing", "failures", folder / "failing", token=None, xet=trip["xet"]
    )
    found = result_of(failing)
    hub.kill()
    offline = result_of(
        start_client(hub, folder / "offline", "no_network", folder / "offline", xet=trip["xet"])
    )
    del found["stderr"], offline["stderr"]
    return {**found, **{f"{name}, no network": line for name, line in offline.items()}}


@pytest.mark.slow
def test_every_failure_is_one_line_that_says_which(errors: dict[str, str]):
    words = {
        "missing repository": "there is no repository alice/nothing",
        "missing revision": "has no revision 'nope'",
        "private": "there is no repository alice/saved, or it is private",
        "wrong token": "the Hub refuses the token",
        "impossible name": "no name of a repository",
        "no token": "the Hub refuses the token",
        "another's": "the token may not do this to alice/text",
        "token that reads": "the token may not do this to alice/new",
        "no network": "does not answer",
    }
    assert len(errors) == 23
    for case, line in errors.items():
        assert line.startswith("HubError: ") and "\n" not in line, f"{case}: {line}"
        assert words[case.split(", ")[1]] in line, f"{case}: {line}"
        assert len(line) < 300, f"{case}: {line}"
