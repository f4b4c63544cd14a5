"""`import guided_diffusers` costs little beside what every user of diffusers pays."""

from __future__ import annotations

import json
import subprocess
import sys

ALLOWED_SECONDS = 0.1

SCRIPT = """
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


def test_import_costs_at_most_100_ms_more_than_diffusers():
    """CPU time on top of diffusers' own import, in one process, so that a busy machine does not matter.

    It brings in no other library, which is asserted; so importing it again costs what the first time does.
    """
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    foreign = [name for name in result["added"] if name.split(".")[0] != "guided_diffusers"]
    assert not foreign, f"the import brings in {foreign}"
    assert min(result["seconds"]) <= ALLOWED_SECONDS
    assert "guided_diffusers.pipelines" not in result["added"]
