"""Push exports to the Hub from a thread, while training goes on and whatever the Hub does.

An export is handed over as hard links, so that the next one may take its place while it is on the way. At
most one waits: a newer one takes its place. A push that fails is one line in the log, and the next export's
brings all. Nothing of this touches random numbers or tensors, so the weights are those of a run that does not
push.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path

from guided_diffusers.core.checks import one_line
from guided_diffusers.hub.facts import FACTS, CardFacts, recipe
from guided_diffusers.hub.push import push_folder
from guided_diffusers.training.engine.config import TrainingConfig

logger = logging.getLogger(__name__)


class Publisher:
    """Pushes to `config.push_to_hub`.

    Args:
        config: The run's; the card tells its images, batches and learning rate, and no path.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.repo_id = config, config.push_to_hub
        self.staging = Path(config.output_dir) / ".publishing"
        shutil.rmtree(self.staging, ignore_errors=True)  # of a run that was stopped
        self._waiting: int | None = None
        self._last: tuple[int, bool] | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def offer(self, export: Path, images_seen: int) -> None:
        """Push a folder as it is now; one that still waits is dropped in its favour."""
        copy = self.staging / str(images_seen)
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(export, copy, copy_function=_link)
        except OSError as error:  # such as a full disk, on a file system without links
            logger.warning("no push of %s: it could not be copied: %s", export, one_line(error))
            shutil.rmtree(copy, ignore_errors=True)
            self._last = (images_seen, False)
            return
        with self._changed:
            dropped, self._waiting = self._waiting, images_seen
            self._changed.notify()
        if dropped is not None and dropped != images_seen:
            shutil.rmtree(self.staging / str(dropped), ignore_errors=True)

    def finish(self) -> bool:
        """Wait for the last push, at most `config.push_wait_seconds`; whether it is on the Hub."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self.config.push_wait_seconds)
        again = f"guided-diffusers push {Path(self.config.output_dir) / 'final'} {self.repo_id}"
        if self._thread.is_alive():
            logger.warning(
                "the last push did not end in %g s; again: %s", self.config.push_wait_seconds, again
            )
            return False
        shutil.rmtree(self.staging, ignore_errors=True)
        if self._last is not None and not self._last[1]:
            logger.warning("the last push failed; again: %s", again)
        return self._last is not None and self._last[1]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closing)
                images_seen, self._waiting = self._waiting, None
            if images_seen is None:
                return
            self._last = (images_seen, self._push(images_seen))

    def _push(self, images_seen: int) -> bool:
        folder = self.staging / str(images_seen)
        message = f"{images_seen:,} images"
        try:
            pushed = push_folder(
                folder, self.repo_id, commit_message=message, card=self._facts(folder, images_seen)
            )
        except Exception as error:  # training must not end for it, whatever it is
            reason = one_line(error)
            logger.warning("push to %s after %s failed: %s", self.repo_id, message, reason)
            return False
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("pushed to %s after %s: %s", self.repo_id, message, pushed.commit_url)
        return True

    def _facts(self, folder: Path, images_seen: int) -> CardFacts:
        """What the export says of itself, and what the run knows."""
        known = CardFacts.read(folder / FACTS) if (folder / FACTS).is_file() else CardFacts()
        return replace(
            known, images_seen=images_seen, recipe=(recipe("Run", images_seen, asdict(self.config)),)
        )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
