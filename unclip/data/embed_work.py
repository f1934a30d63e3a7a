"""Which shards are to be embedded, and which of them this process may take: all, those that no other has claimed, or one alone."""

import time
from collections.abc import Iterator
from copy import copy

from unclip.data.manifest import Part, Stage
from unclip.files import Claims

SECONDS_BETWEEN_LOOKS = 0.5  # at what the other processes have done
CLAIMS = ".claims"


class Work:
    """What is to be embedded: the shards in their order, and which of them this process may take.

    Args:
        made_from: the fingerprint of what each part would be made from today, by name.
    """

    def __init__(self, stage: Stage, sources: list[Part], made_from: dict[str, str], shared: bool) -> None:
        self.stage, self._sources, self._made_from = stage, sources, made_from
        self._claims = Claims(stage.folder / CLAIMS) if shared else None

    def only(self, source: Part) -> "Work":
        """The work on one shard alone, for whoever was given it: what another process needs to do and to record it."""
        stage = copy(self.stage)
        stage.folder = stage.folder.resolve()
        return Work(stage, [source], {source.name: self._made_from[source.name]}, shared=False)

    def done(self, source: Part) -> Part | None:
        """The record of its part, None where it must be made."""
        return self.stage.done_part(source.name, self._made_from[source.name])

    def left(self) -> list[Part]:
        """The shards whose parts must be made."""
        return [source for source in self._sources if self.done(source) is None]

    def take(self) -> Iterator[Part]:
        """The shards that are left and that no other process works on, each once. What others hold is left to another look.

        Whoever reads ahead takes a shard before the last one is recorded, and a process may claim its own again: so one look
        must not look back.
        """
        for source in self.left():
            if self._claims is None:
                yield source
            elif self._claims.take(int(source.name)):
                if self.done(source) is None:
                    yield source
                else:  # since we looked
                    self._claims.give_back(int(source.name))

    def wait(self) -> None:
        """Lets some time pass, in which other processes record what they hold, or die."""
        time.sleep(SECONDS_BETWEEN_LOOKS)

    def record(self, source: Part, rows: int, kept: int, seconds: float) -> None:
        """Records a part that stands under its final name."""
        files = [f"{source.name}.parquet"]
        made_from = self._made_from[source.name]
        self.stage.record_part(source.name, made_from=made_from, rows_in=rows, kept=kept, rejected={}, files=files, seconds=seconds)
        if self._claims is not None:
            self._claims.give_back(int(source.name))
