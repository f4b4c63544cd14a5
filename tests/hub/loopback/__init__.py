"""A Hub on the loopback interface, for huggingface_hub's real client: push, pull, revisions, tokens, faults.

It speaks what the client (2.4) speaks, over plain LFS (HF_HUB_DISABLE_XET=1) and over Xet (the default), from
the standard library. State lies on disk and every write is a temporary name and a rename, so a SIGKILL at any
moment leaves a valid Hub. A double for tests: 127.0.0.1, no TLS, tokens in the clear.
"""

from .process import Hub, check_store

__all__ = ["Hub", "check_store"]
