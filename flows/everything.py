"""The whole pipeline as one flow: each stage works on one data root, as a child process where it takes long, in this order.

The first run on a root trains the models. A run that finds new rows in the source lets the data grow, goes on with the
models in use for a bounded time, and puts what came of it to use where the rules of the config allow it. The manifests
and the record of versions on disk are the memory; Prefect adds order, retries, schedules, logs and pictures of the
results. A run that was stopped goes on where it stood when it is started again.
"""

from typing import Any

from prefect import flow, get_run_logger

from flows.artifacts import show_counts, show_numbers, show_report
from flows.stages import Counts, work_on, work_on_network
from unclip.config import RunConfig
from unclip.models import paths_of
from unclip.night import Night, begin, check, decide, only_run, tidy, trained, unfinished
from unclip.operations import take_down_gone
from unclip.versions import in_use


@flow(name="everything", persist_result=False)
def everything(config: RunConfig) -> dict[str, Any]:
    """From links and captions to a text-to-image model and a report.

    Args:
        config: the whole run; what is left out has its default.
    """
    with only_run(config):
        counts: dict[str, Counts] = {}
        check(config)
        if (left := unfinished(config)) is not None:  # an earlier run died in it
            counts |= models(left)
        counts |= data(config)
        if (night := begin(config)) is not None:
            counts |= models(night)
        tidy(config)
        show_counts(counts)
        report = paths_of(in_use(config)).report
        show_report(report)
        return {"root": config.root, "report": str(report), "counts": counts}


def data(config: RunConfig) -> dict[str, Counts]:
    """The stages that models are trained on: new rows are added, those that have gone are taken out, and nothing is done twice."""
    source = work_on("source", config)  # links and captions -> one table, and what was rejected
    if (gone := take_down_gone(config)) is not None:
        get_run_logger().info("%d rows have gone from the source and were taken down", len(gone.rows))
    return {
        "source": source,
        "download": work_on_network("download", config),  # -> shards of pictures
        "curate": work_on("curate", config),  # rules without a model: duplicates, poor captions
        "clip": work_on("clip", config),  # -> the CLIP that gives pictures and captions one space
        "embed": work_on("embed", config),  # -> the embedding store
        "select": work_on("select", config),  # rules on embeddings: near duplicates, leaks between splits
        "index": work_on("index", config),  # -> nearest-neighbour search
    }


def models(night: Night) -> dict[str, Counts]:
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
    return counts
