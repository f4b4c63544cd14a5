"""A network that knows which process it was trained for: in its configuration, under `process`."""

from __future__ import annotations

from typing import Any, ClassVar

from guided_diffusers.schedulers.process import check_process


class TrainedProcessMixin:
    """Compares `config.process`, as of `describe_process`, with a scheduler's; `called` is for errors."""

    called: ClassVar[str] = "classifier"

    def check_scheduler(self, scheduler: Any) -> None:
        """Compare the process that the network was trained for with a scheduler's.

        Raises:
            ValueError: They differ, and the error names in what; or the network's is unknown.
        """
        if self.config.process is None:
            raise ValueError(
                f"the {self.called}'s process is unknown: if it is this scheduler's, say so by "
                f"{self.called}.register_to_config(process=describe_process(scheduler))"
            )
        check_process(self.config.process, scheduler, self.called)
