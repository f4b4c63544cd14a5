"""The command line: its commands, and how errors end it.

Exit codes: 0 done; 1 failed, and one line on standard error says why; 2 wrong usage; 130 Ctrl-C.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from guided_diffusers.cli.convert import convert_adm, convert_ldm
from guided_diffusers.cli.ema import ema
from guided_diffusers.cli.evaluate import evaluate
from guided_diffusers.cli.generate import generate
from guided_diffusers.cli.hub import pull, push
from guided_diffusers.cli.info import info
from guided_diffusers.cli.likelihood import likelihood
from guided_diffusers.cli.output import answering
from guided_diffusers.cli.report import report
from guided_diffusers.cli.sweep import sweep
from guided_diffusers.cli.train import CONTEXT_SETTINGS, precompute, train

app = typer.Typer(
    name="guided-diffusers",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
CONTEXT = {train: CONTEXT_SETTINGS, precompute: CONTEXT_SETTINGS}
EXAMPLES: dict[Callable[..., Any], tuple[str, ...]] = {
    generate: (
        'generate "a photo of a sneaker" "a photo of a bag" --num-images 8',
        'generate "a photo of a coat" --guidance-scale 3 --scheduler dpmsolver++ --steps 20',
        "generate --from-image outputs/00-a-photo-of-a-coat-seed0-00.png",
    ),
    train: (
        "train --list",
        "train autoencoder --config fashion_autoencoder --dry_run",
        "train text-to-image --config my.yaml --training.num_images 1000 --processes 2",
    ),
    precompute: (
        "precompute shards --config my.yaml --processes 8",
        "precompute shards --config my.yaml --data.on_corrupt raise",
    ),
    ema: (
        "ema runs/mine --length 0.08",
        "ema runs/mine --length 0.15 --out mine-long",
        "ema runs/mine --length 0.05 --images 100000 --out weak",
    ),
    report: ("report runs/mine", "report runs/mine --out mine.html"),
    evaluate: (
        "evaluate generated/ --real real/",
        "evaluate runs/drawn --real data/fashion/test.parquet --checkpoint fashion-32 --num-images 2000",
    ),
    sweep: (
        "sweep benchmarks/studies/fashion_32/sweep.yaml --output runs/sweep",
        "sweep my.yaml --output runs/mine --adopt checkpoint/",
    ),
    likelihood: ("likelihood --checkpoint runs/pixels/final --data data/fashion/test.parquet --crop 28",),
    info: ("info fashion-32", "info you/your-model --json"),
    push: (
        "push runs/fashion_text_to_image/final you/your-model",
        "push checkpoint/ you/your-model --private --with-code",
    ),
    pull: ("pull you/your-model checkpoint", "pull you/your-model checkpoint --revision v1 --replace"),
    convert_adm: (
        "convert-adm 64x64_diffusion.pt --kind unet --preset 64 --output adm-64 --allow-pickle",
        "convert-adm classifier.safetensors --kind classifier --flags flags.json --output adm-classifier",
    ),
    convert_ldm: ("convert-ldm model.ckpt --config autoencoder.yaml --output vae --allow-pickle",),
}
"""Every command, in the order of the help, with examples of its use."""


def _help(command: Callable[..., Any]) -> str:
    """What a command does, examples (after a backspace typer keeps lines as they are), the rest."""
    about, _, rest = inspect.cleandoc(command.__doc__ or "").partition("\n\n")
    examples = "\n".join(f"  guided-diffusers {example}" for example in EXAMPLES[command])
    return f"{about}\n\n\b\nFor example:\n{examples}\n\n{rest}"


for _command in EXAMPLES:
    app.command(help=_help(_command), context_settings=CONTEXT.get(_command))(answering(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        from guided_diffusers import __version__

        typer.echo(f"guided-diffusers {__version__}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
]


HELP = """Guided diffusion on top of diffusers: draw images, train models, measure and share them.

\b
For example:
  guided-diffusers generate "a photo of a sneaker"       from the checkpoint that ships
  guided-diffusers train --list                          what can be trained
  guided-diffusers evaluate generated/ --real real/      figures of any model's images
  guided-diffusers COMMAND --help                        what a command does, with examples

Every command takes --json: one JSON object on standard output, and nothing else there.

\b
Exit codes:
  0    done
  1    failed; one line on standard error says why
       (with GUIDED_DIFFUSERS_DEBUG=1 the traceback)
  2    wrong usage
  130  stopped by Ctrl-C
  `train` ends with the code of the run.
"""


@app.callback(help=HELP)
def root(version: Version = False) -> None:
    """What stands before the command."""


def main() -> None:
    """Runs the command line and ends the process. With GUIDED_DIFFUSERS_DEBUG=1, errors show a traceback."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except Exception as error:  # a user gets one line, whatever it is; the traceback is for who asks
        if hasattr(error, "format_message"):  # wrong usage, by typer
            no_arguments = type(error).__name__ == "NoArgsIsHelpError"  # its message is the help
            print(error.format_message() if no_arguments else f"error: {_usage(error)}", file=sys.stderr)
            sys.exit(error.exit_code)
        if os.environ.get("GUIDED_DIFFUSERS_DEBUG", "0") not in ("", "0"):
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        kind = "" if isinstance(error, ValueError | TypeError | OSError) else f"{type(error).__name__}: "
        print(f"error: {kind}{reason}", file=sys.stderr)
        sys.exit(1)


def _usage(error: Any) -> str:
    """What was wrong about the usage and where the right one is said, in one line."""
    command = getattr(getattr(error, "ctx", None), "command_path", "guided-diffusers")
    text = " ".join(error.format_message().split()).removeprefix("Invalid value: ")
    return f"{text} ({command} --help)"
