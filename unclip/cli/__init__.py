"""The `unclip` command. Every command is a few lines over the package; heavy imports wait until a command needs them."""

from unclip.cli import data, exchange, generate, manipulate, plan, runs, search, serve, stages, train, use
from unclip.cli.app import app, main

__all__ = ["app", "data", "exchange", "generate", "main", "manipulate", "plan", "runs", "search", "serve", "stages", "train", "use"]
