"""The data stages alone: from links and captions to an embedding store that can be searched. No model of the pipeline is trained."""

from prefect import flow

from flows.artifacts import show_counts
from flows.stages import Counts, work_on, work_on_network
from unclip.config import RunConfig
from unclip.stages import pending


@flow(name="data", persist_result=False)
def data(config: RunConfig) -> dict[str, Counts]:
    """From links and captions to shards, embeddings and the search index.

    Args:
        config: the whole run; what is left out has its default.
    """
    pending(config)  # a config that does not fit the root is refused before anything is done
    counts = {
        "source": work_on("source", config),
        "download": work_on_network("download", config),
        "curate": work_on("curate", config),
        "clip": work_on("clip", config),
        "embed": work_on("embed", config),
        "select": work_on("select", config),
        "index": work_on("index", config),
    }
    show_counts(counts)
    return counts
