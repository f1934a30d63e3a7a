"""The whole pipeline as one flow: each stage works on one data root, as a child process where it takes long, in this order.

The manifests on disk are the memory. Prefect adds order, retries, schedules, logs and pictures of the results. A stage
that is done is skipped, whoever did it; a run that was stopped goes on where it stood when it is started again.
"""

from typing import Any

from prefect import flow

from flows.artifacts import show_counts, show_report
from flows.stages import work_on, work_on_network
from unclip.config import RunConfig
from unclip.models import paths_of
from unclip.stages import pending


@flow(name="everything", persist_result=False)
def everything(config: RunConfig) -> dict[str, Any]:
    """From links and captions to a text-to-image model and a report.

    Args:
        config: the whole run; what is left out has its default.
    """
    pending(config)  # a config that does not fit the root is refused before anything is done
    counts = {
        "source": work_on("source", config),  # links and captions -> one table, and what was rejected
        "download": work_on_network("download", config),  # -> shards of pictures
        "curate": work_on("curate", config),  # rules without a model: duplicates, poor captions
        "clip": work_on("clip", config),  # -> the CLIP that gives pictures and captions one space
        "embed": work_on("embed", config),  # -> the embedding store
        "select": work_on("select", config),  # rules on embeddings: near duplicates, leaks between splits
        "index": work_on("index", config),  # -> nearest-neighbour search
        "prior": work_on("prior", config),  # caption -> image embedding
        "decoder": work_on("decoder", config),  # image embedding -> picture
        "upsampler": work_on("upsampler", config),  # small picture -> large picture
        "evaluate": work_on("evaluate", config),  # -> numbers, pictures and the report
    }
    report = paths_of(config).report
    show_counts(counts)
    show_report(report)
    return {"root": config.root, "report": str(report), "counts": counts}
