"""Serves: `python -m hub.loopback --root DIR [--port N] [--throttle BYTES_PER_S]` prints READY and where."""

import argparse
import os
import threading
from pathlib import Path

from .server import serve

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--root", type=Path, required=True)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--throttle", type=int, default=0)
arguments = parser.parse_args()
# hf_xet, with which the server puts together what came up through Xet, keeps its cache and its peace.
os.environ.update(HF_XET_TELEMETRY_ENABLED="0", HF_XET_CACHE=str(arguments.root.resolve() / "xet/cache"))
print("READY", serve(arguments.root, arguments.port, arguments.throttle), flush=True)
threading.Event().wait()
