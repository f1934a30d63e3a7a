"""The data stages: from links and captions to an embedding store that can be searched. No model of the pipeline is trained."""

from prefect import flow, get_run_logger

from flows.artifacts import show_counts
from flows.stages import Counts, work_on, work_on_network
from unclip.config import RunConfig
from unclip.night import check
from unclip.operations import take_down_gone
from unclip.roots import holding_run
from unclip.versions import remember


@flow(name="data", persist_result=False)
def data(config: RunConfig) -> dict[str, Counts]:
    """From links and captions to shards, embeddings and the search index.

    Args:
        config: the whole run; what is left out has its default.
    """
    with holding_run(config.root):
        check(config)
        remember(config)
        counts = work_on_data(config)
        show_counts(counts)
        return counts


def work_on_data(config: RunConfig) -> dict[str, Counts]:
    """Every stage that models are trained on: new rows are added, those that have gone are taken out, and nothing is done twice."""
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
