"""The app that the commands register with: its groups, its console, and how it ends."""

import errno
import sys
import traceback

from cyclopts import App, CycloptsError, Group
from rich.console import Console

from unclip.cli.options import set_settings, split_settings
from unclip.files import UnclipError
from unclip.printable import printable_lines

FAULTY, USER_ERROR, INTERRUPTED = 1, 2, 130

HELP = """Train and use your own unCLIP (DALL-E 2): from captioned images to a text-to-image model.

A run goes through stages, each of which leaves a result under one root: source, download, curate, clip, embed, select,
index, prior, decoder, upsampler, evaluate. `unclip run` does all that is not yet done; each stage is also a command of its own. Stop any of them
at any moment: the same command goes on.

    unclip run --preset demo
    unclip run --source my.parquet --root data/mine
    unclip generate "a large red star" --root data/demo
    unclip variations picture.png --root data/demo
    unclip inspect data/demo

Any setting can be given by its section and name, such as --prior.depth 8 or --decoder.training.num_steps 5000;
--dry-run shows them all.
"""

app = App(name="unclip", help=HELP, help_format="markdown", version_flags=["--version"])
train_app = App(name="train", help="Train a model of the pipeline on what is there.")

app.command(train_app)

STAGES = Group("Stages", sort_key=1)
evaluate_app = App(name="evaluate", group=STAGES)
app.command(evaluate_app)
DATA = Group("Looking after the data", sort_key=2)
USE = Group("Using the models", sort_key=3)

console = Console()


def main() -> None:
    """The entry point: one line for what the user can put right, a traceback only with --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        others, settings = split_settings(arguments)
        set_settings(settings)
        app(others, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        _leave("stopped; what was done is kept, and the same command goes on", INTERRUPTED, debug)
    except CycloptsError as error:
        _leave(f"{error}\n(unclip --help shows the commands)", USER_ERROR, debug)
    except UnclipError as error:
        _leave(str(error), INTERRUPTED if type(error).__name__ == "Interrupted" else USER_ERROR, debug)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _leave("the disk is full; free some space, and the same command goes on", USER_ERROR, debug)


def _leave(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"unclip: {printable_lines(message)}", file=sys.stderr, flush=True)  # it may quote what strangers wrote
    raise SystemExit(code)
