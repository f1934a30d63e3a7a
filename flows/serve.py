"""`python -m flows.serve`: offers the whole pipeline and every stage to a Prefect server, and runs what is due, on this machine."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.environment import set_environment
from unclip.config import RunConfig, as_dict, load_config
from unclip.files import UnclipError
from unclip.roots import bring_config, local_root

SERVER_SECONDS = 5.0


@dataclass(frozen=True)
class Deployment:
    """A flow as a server knows it. `entrypoint` is its dotted name; `cron` (UTC) is empty where it runs only when asked."""

    entrypoint: str
    name: str
    cron: str = ""


# prefect.yaml names the same ones, for worker pools
DEPLOYMENTS = (
    Deployment("flows.everything.everything", "nightly", cron="15 2 * * *"),
    Deployment("flows.stages.source", "on-demand"),
    Deployment("flows.stages.download", "on-demand"),
    Deployment("flows.stages.curate", "on-demand"),
    Deployment("flows.stages.clip", "on-demand"),
    Deployment("flows.stages.embed", "on-demand"),
    Deployment("flows.stages.select", "on-demand"),
    Deployment("flows.stages.index", "on-demand"),
    Deployment("flows.stages.prior", "on-demand"),
    Deployment("flows.stages.decoder", "on-demand"),
    Deployment("flows.stages.upsampler", "on-demand"),
    Deployment("flows.stages.evaluate", "on-demand"),
)


def serve(config: RunConfig) -> None:
    """Registers every deployment with this config as its default, then runs what is due until it is stopped.

    Raises:
        UnclipError: there is no server to serve to.
    """
    set_environment(local_root(config.root))
    from prefect import serve as serve_all  # only now: Prefect reads the environment when it is imported

    _require_server()
    # a pause on shutdown would outlive the shutdown: schedules are paused with `prefect deployment schedule pause`
    serve_all(*(_runnable(deployment, {"config": as_dict(config)}) for deployment in DEPLOYMENTS), pause_on_shutdown=False)


def _runnable(deployment: Deployment, parameters: dict[str, Any]) -> Any:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import load_flow_from_entrypoint
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    return load_flow_from_entrypoint(deployment.entrypoint).to_deployment(
        name=deployment.name,
        schedule=Cron(deployment.cron, timezone="UTC") if deployment.cron else None,
        parameters=parameters,
        # the second of two runs at once would only wait for the data root, so it is cancelled
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _require_server() -> None:
    import httpx
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    how = "in another terminal run `prefect server start`, here `export PREFECT_API_URL=http://127.0.0.1:4200/api`, and try again"
    if not url:
        raise UnclipError(f"expected a Prefect server in PREFECT_API_URL, but it is not set, and schedules never fire without one; {how}")
    try:
        httpx.get(f"{url}/health", timeout=SERVER_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        raise UnclipError(f"no Prefect server answers at PREFECT_API_URL={url} ({error}); {how}") from None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--preset", default="", help="a preset to start from, such as demo")
    parser.add_argument("--config", type=Path, help="a TOML or JSON file of settings, over the preset")
    parser.add_argument("--root", default="", help="the folder of the data set; alone it goes on with the config that the folder remembers")
    given = parser.parse_args()
    try:
        serve(_resolve(given.preset, given.config, given.root))
    except UnclipError as error:
        print(f"flows.serve: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _resolve(preset: str, file: Path | None, root: str) -> RunConfig:
    bring_config(root)
    remembered = local_root(root) / "run.json"
    if not preset and file is None:
        if not root or not remembered.is_file():
            raise UnclipError("expected --preset, --config, or the --root of an earlier run")
        file = remembered
    return load_config(preset=preset, file=file, settings={"root": root} if root else {})


if __name__ == "__main__":
    main()
