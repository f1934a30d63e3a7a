"""The `unclip` command. Every command is a few lines over the package; heavy imports wait until a command needs them."""

from unclip.cli import data, exchange, generate, manipulate, runs, search, stages, train, use
from unclip.cli.app import app, main

__all__ = ["app", "data", "exchange", "generate", "main", "manipulate", "runs", "search", "stages", "train", "use"]
