"""The whole pipeline as one flow: each stage works on one data root, as a child process where it takes long, in this order.

The first run on a root trains the models. A run that finds new rows in the source lets the data grow, goes on with the
models in use for a bounded time, and puts what came of it to use where the rules of the config allow it. The manifests
and the record of versions on disk are the memory; Prefect adds order, retries, schedules, logs and pictures of the
results. A run that was stopped goes on where it stood when it is started again.
"""

from typing import Any

from prefect import flow, get_run_logger

from flows.artifacts import announce, show_counts, show_numbers, show_report
from flows.data import work_on_data
from flows.stages import Counts, work_on
from unclip.config import RunConfig
from unclip.models import paths_of
from unclip.night import Night, begin, check, decide, tidy, trained, unfinished
from unclip.roots import holding_run
from unclip.space import free_bytes
from unclip.versions import in_use, remember


@flow(name="everything", persist_result=False)
def everything(config: RunConfig) -> dict[str, Any]:
    """From links and captions to a text-to-image model and a report.

    Args:
        config: the whole run; what is left out has its default.
    """
    with holding_run(config.root):
        check(config)
        remember(config)
        counts: dict[str, Counts] = {}
        if (left := unfinished(config)) is not None:  # an earlier run died in it
            counts |= work_on_models(left)
        counts |= work_on_data(config)
        if (night := begin(config)) is not None:
            counts |= work_on_models(night)
        tidy(config)
        if (free := free_bytes(paths_of(config).root)) < config.night.disk_low_gb * 1e9:
            announce("disk-low", f"{free / 1e9:,.2f} GB are free for {config.root}")
        show_counts(counts)
        report = paths_of(in_use(config)).report
        show_report(report)
        return {"root": config.root, "report": str(report), "counts": counts}


def work_on_models(night: Night) -> dict[str, Counts]:
    """Prior, decoder and upsamplers of one version, its report, and whether it is put to use."""
    counts: dict[str, Counts] = {}
    for stage in night.to_train:
        counts[stage] = work_on(stage, night.config)
        night = trained(night, stage)
    counts["evaluate"] = work_on("evaluate", night.config)  # -> numbers, pictures and the report
    if night.rival is not None:
        work_on("evaluate", night.rival)  # the models in use, on the same data
    verdicts = decide(night)
    show_numbers(night)
    for verdict in verdicts:
        get_run_logger().info("%s: %s", night.version.name, verdict)
    if fell := [str(verdict) for verdict in verdicts if not verdict.passed]:
        announce("quality-fell", f"{night.version.name} of {night.config.root} was refused: {'; '.join(fell)}")
    return counts
