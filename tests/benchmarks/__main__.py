"""`make bench`: each hot path beside the peer that it competes with, on the same work in the same run."""

import argparse
import importlib
from pathlib import Path

from rich.console import Console

RESULTS = Path(__file__).parent / "results"
# each a module here with `run(peers, out, console)`, and, where it needs more than we do, a list of its peers in peers/NAME.txt
BENCHMARKS = ("curate", "decoder", "download", "loader", "prior", "store")


def main() -> None:
    """Runs the benchmarks that are named, or all."""
    asked = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    asked.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all without one")
    asked.add_argument("--peers", type=Path, required=True, help="the folder with one folder of packages, or environment, for each benchmark")
    asked.add_argument("--out", type=Path, default=RESULTS)
    options = asked.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        asked.error(f"expected names among {', '.join(BENCHMARKS)}, got {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or BENCHMARKS:
        importlib.import_module(f"tests.benchmarks.{name}").run(options.peers / name, options.out, Console(width=160))


if __name__ == "__main__":
    main()
