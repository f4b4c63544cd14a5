"""The package alone imports no other library, and the command answers questions about itself at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED_SECONDS = 0.1
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "datasets", "numpy", "PIL")

AFTER_DIFFUSERS = """
import json, sys, time
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

before, seconds = set(sys.modules), []
for _ in range(5):
    start = time.process_time()
    import guided_diffusers
    seconds.append(time.process_time() - start)
    added = set(sys.modules) - before
    for name in [name for name in sys.modules if name.split(".")[0] == "guided_diffusers"]:
        del sys.modules[name]
print(json.dumps({"seconds": seconds, "added": sorted(added)}))
"""

BEFORE_DIFFUSERS = f"""
import sys
import guided_diffusers
assert not [name for name in {HEAVY} if name in sys.modules]
assert guided_diffusers.noise_level.__module__ == "guided_diffusers.schedulers.adapt"
for _ in range(2):
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
    assert "guided_diffusers" in LOADABLE_CLASSES
    assert diffusers.TextToImagePipeline is guided_diffusers.TextToImagePipeline
    assert diffusers.DDIMPipeline.__module__.startswith("diffusers.")
    waiting = {{finder.name for finder in sys.meta_path if "guided" in type(finder).__module__}}
    assert waiting <= {{"diffusers.pipelines.auto_pipeline"}}  # which imports every pipeline, and nobody has
    assert type(diffusers.__spec__.loader).__name__ == "SourceFileLoader"
"""

QUESTIONS = f"""
import json, sys
from guided_diffusers.cli import main

answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["guided-diffusers", *words]
    try:
        main()
    except SystemExit as end:
        answers.append([end.code or 0, [name for name in {HEAVY} if name in sys.modules]])
print(json.dumps(answers), file=sys.stderr)
"""

USAGE = {
    ("--help",): 0,
    ("--version",): 0,
    ("generate", "--help"): 0,
    ("train", "--help"): 0,
    ("train", "--list"): 0,
    ("precompute", "--help"): 0,
    ("precompute", "x", "--config", "nonsense"): 2,
    ("sweep", "--help"): 0,
    (): 2,
    ("nothing",): 2,
    ("generate",): 2,
    ("generate", "a bag", "--steps", "many"): 2,
    ("generate", "a bag", "--scheduler", "best"): 2,
    ("generate", "a bag", "--from-image", "x.png"): 2,
    ("evaluate", "a", "--real", "b", "--scheduler", "best"): 2,
    ("pull", "a/b", "c", "--nonsense"): 2,
    ("train", "nonsense"): 2,
    ("train", "autoencoder", "--config", "nonsense"): 2,
    ("convert-adm", __file__, "--kind", "unet", "--output", "x", "--preset", "65"): 2,
}
"""Questions about the command and wrong uses of it, with the exit code."""


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=280
    )
    assert process.returncode == 0, process.stderr
    return process


def test_import_costs_at_most_100_ms_more_than_diffusers():
    """CPU time on top of diffusers' own import, in one process, so that a busy machine does not matter.

    It brings in no other library, which is asserted; so importing it again costs what the first time does.
    """
    result = json.loads(python(AFTER_DIFFUSERS).stdout)
    foreign = [name for name in result["added"] if name.split(".")[0] != "guided_diffusers"]
    assert not foreign, f"the import brings in {foreign}"
    assert min(result["seconds"]) <= ALLOWED_SECONDS
    assert "guided_diffusers.pipelines" not in result["added"]


def test_diffusers_imported_later_is_taught_then():
    python(BEFORE_DIFFUSERS)


def test_questions_about_the_command_import_no_library_that_computes():
    answers = json.loads(python(QUESTIONS, json.dumps(list(USAGE))).stderr.splitlines()[-1])
    assert {words: tuple(answer) for words, answer in zip(USAGE, answers, strict=True)} == {
        words: (code, []) for words, code in USAGE.items()
    }


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--steps", "x"]], ids=str)
@pytest.mark.parametrize(
    "command",
    [[str(Path(sys.executable).with_name("guided-diffusers"))], [sys.executable, "-m", "guided_diffusers"]],
    ids=["installed", "module"],
)
def test_the_command_answers_at_once(command, words):
    """In half a second of the processor's time, which a busy machine does not lengthen: the best of five."""
    seconds = []
    while not seconds or (min(seconds) > 0.5 and len(seconds) < 5):
        before = os.times()
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        after = os.times()
        spent = after.children_user - before.children_user + after.children_system - before.children_system
        seconds.append(spent)
    assert done.returncode in (0, 2) and (done.stdout + done.stderr).strip()
    assert min(seconds) <= 0.5
