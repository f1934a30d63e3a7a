"""Pictures of captions, by the models of a root: a child process that writes a folder of them."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import show_picture
from flows.process import run_child
from unclip.roots import local_root

GENERATED = "generated"  # in a root: a folder for each run of this flow
SHEET = "sheet.png"


@flow(name="generate", persist_result=False)
def generate(
    captions: Annotated[list[str], Field(min_length=1, max_length=1000)],
    root: str,
    num: Annotated[int, Field(ge=1, le=1000)] = 4,
    seed: Annotated[int, Field(ge=0)] = 0,
    prior: Literal["first", "none", "diffusion", "autoregressive", "regression", "linear"] = "first",
    upsample: bool = True,
) -> str:
    """Pictures of captions, in a folder of their own under the root.

    Args:
        captions: what the pictures shall show.
        root: the folder of the data set whose models draw them.
        num: how many pictures of each caption.
        seed: the same seed gives the same pictures.
        prior: which of the trained priors; none takes the text embedding as if it were an image embedding.
        upsample: enlarge the pictures with the root's upsamplers, where it has any.
    """
    out = local_root(root) / GENERATED / f"{flow_run.scheduled_start_time:%Y%m%d-%H%M%S}-{str(flow_run.id)[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        # in a file, for captions come from strangers: on a command line "--out /somewhere" would be an option
        file = Path(folder) / "captions.jsonl"
        file.write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions))
        command = command_of(file, root=root, num=num, seed=seed, prior=prior, upsample=upsample, out=out)
        run_child(command, name="generate", say=get_run_logger().info)
    show_picture(out / SHEET, key="generated")
    return str(out)


def command_of(captions: Path, *, root: str, num: int, seed: int, prior: str, upsample: bool, out: Path) -> Sequence[str]:
    """The command line that draws the pictures of the captions in a table."""
    options = {"--captions": captions, "--root": root, "--num": num, "--seed": seed, "--prior": prior, "--out": out}
    # one word each: a root that begins with "-" is still a value
    return [sys.executable, "-m", "unclip", "generate", *(f"{name}={value}" for name, value in options.items()), *([] if upsample else ["--no-upsample"])]
