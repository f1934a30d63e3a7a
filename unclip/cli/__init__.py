"""The `unclip` command. Every command is a few lines over the package; heavy imports wait until a command needs them."""

from unclip.cli import data, search, stages, train, use
from unclip.cli.app import app, main

__all__ = ["app", "data", "main", "search", "stages", "train", "use"]
