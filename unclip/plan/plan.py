"""The plan itself: what each result takes on disk, what each stage takes in hours, and what that costs, each with its formula."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from unclip.config import RunConfig
from unclip.data.index_kinds import KINDS, Choice, choices_for, choose
from unclip.files import UnclipError
from unclip.plan import sizes
from unclip.plan.assumed import Assumed
from unclip.plan.published import PublishedClip
from unclip.plan.rates import Rates
from unclip.plan.work import Training, embed_flops, index_flops, trainings
from unclip.training.snapshot import KEPT_CHECKPOINTS

HOUR = 3600.0
DAY_HOURS, MONTH_HOURS = 24.0, 730.0
TERA, GIBI = 1e12, 2**30
SELECT_BYTES_A_ROW = 140  # of memory, as the benchmark of the curation measures it


@dataclass(frozen=True)
class Line:
    """A quantity with its formula, and one value for each number of rows."""

    what: str
    formula: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What some numbers of rows take: sections of lines, and what has to be said of them."""

    rows: tuple[float, ...]
    sections: Mapping[str, Sequence[Line]]
    notes: Sequence[str]


@dataclass
class _Lines:
    rows: Sequence[float]
    lines: list[Line] = field(default_factory=list)

    def add(self, what: str, formula: str, of_rows: Callable[[float], float]) -> None:
        self.lines.append(Line(what, formula, tuple(of_rows(rows) for rows in self.rows)))

    def total(self, number: int) -> float:
        """Of one number of rows, over all lines."""
        return sum(line.values[number] for line in self.lines)


def make_plan(rows: Sequence[float], config: RunConfig, clip: PublishedClip, assumed: Assumed, rates: Rates) -> Plan:
    """Bytes, memory, hours and cost for each number of rows, which are pairs that are kept.

    Raises:
        UnclipError: no rows, or fewer than one.
    """
    if not rows or min(rows) < 1:
        raise UnclipError(f"rows must be at least 1, got {', '.join(f'{number:g}' for number in rows) or 'none'}")
    trained = trainings(config, clip, assumed)
    disk = _disk(rows, config, clip, assumed, trained)
    memory = _memory(rows, clip)
    on_gpu, on_cores = _hours(rows, config, clip, assumed, rates, trained)
    sections = {"bytes on disk": disk.lines, "bytes of memory": memory.lines}
    if on_gpu.lines:
        sections["GPU hours"] = on_gpu.lines
    sections["hours of a CPU core"] = on_cores.lines
    sections["in all"] = _in_all(rows, assumed, disk, on_gpu, on_cores)
    return Plan(tuple(rows), sections, [*_of_indexes(rows, config, clip), *_notes(config, assumed, rates, trained)])


def _disk(rows: Sequence[float], config: RunConfig, clip: PublishedClip, assumed: Assumed, trained: Sequence[Training]) -> _Lines:
    disk, size = _Lines(rows), config.download.image_size
    picture = sizes.picture_bytes(size, assumed)
    states = clip.text_width if config.embed.text_tokens else 0
    disk.add("source", f"links x (0.53 x 16 + {assumed.text_left:g} x (link + caption) + 1)", lambda n: sizes.source_bytes(n, assumed))
    disk.add(f"shards, {size} pixels", f"rows x ({picture:,.0f} + tar of 3 members) + table", lambda n: sizes.shard_bytes(n, picture, assumed))
    disk.add("pooled embeddings", f"rows x 2 x (2 x {clip.emb_width} + 5)", lambda n: sizes.pooled_bytes(n, clip.emb_width))
    if states:
        formula = f"rows x (2 x {states} x {assumed.caption_tokens:g} tokens + 5)"
        disk.add("text states", formula, lambda n: sizes.text_state_bytes(n, states, assumed))
    disk.add(
        "rest of the store", f"rows x ({assumed.text_left:g} x (link + caption) + 0.53 x 64 + 2 x tokens + 7)", lambda n: sizes.store_rest_bytes(n, assumed)
    )
    disk.add("select", "rows x 14", sizes.selected_bytes)
    if config.prior.reading == "cache":
        disk.add("training cache", "vectors of the store + 8 x rows", lambda n: sizes.cache_bytes(n, clip.emb_width, states, assumed))
    disk.add("index", "rows x bytes of its kind + centres", lambda n: sizes.index_bytes(n, _index_of(n, config, clip), clip.emb_width))
    disk.add("keys of the index", "rows x (link + caption + 43)", lambda n: sizes.keys_bytes(n, assumed))
    parameters = clip.parameters
    disk.add("CLIP", f"4 x {parameters:,}", lambda n: float(sizes.FLOAT32 * parameters))
    for training in trained:
        averages = len(training.config.ema_decays)
        formula = f"{KEPT_CHECKPOINTS} x 4 x {training.parameters:,} x (1 + {averages} + {training.num_moments})"
        held = sizes.checkpoint_bytes(training.parameters, num_averages=averages, num_moments=training.num_moments, kept=KEPT_CHECKPOINTS)
        disk.add(f"{training.name}, checkpoints", formula, lambda n, held=held: held)  # type: ignore[misc]
    return disk


def _memory(rows: Sequence[float], clip: PublishedClip) -> _Lines:
    memory = _Lines(rows)
    for kind in KINDS:
        of_row = [choice.bytes_a_row for choice in choices_for(round(max(rows)), clip.emb_width) if choice.kind == kind]
        least = f"rows x {of_row[0]}" + (f", down to {of_row[-1]}" if len(of_row) > 1 else "")
        memory.add(f"index {kind}", least, lambda n, of_row=of_row: float(n * of_row[-1]))  # type: ignore[misc]
    memory.add("select", f"rows x {SELECT_BYTES_A_ROW}", lambda n: float(SELECT_BYTES_A_ROW * n))
    return memory


def _index_of(rows: float, config: RunConfig, clip: PublishedClip) -> Choice:
    """The index that the stage would build, and where none fits into its memory the one that takes the least."""
    try:
        return choose(config.index.kind, round(rows), clip.emb_width, int(config.index.max_memory_gib * GIBI))
    except UnclipError:
        return choices_for(round(rows), clip.emb_width)[-1]


def _hours(rows: Sequence[float], config: RunConfig, clip: PublishedClip, assumed: Assumed, rates: Rates, trained: Sequence[Training]) -> tuple[_Lines, _Lines]:
    """Hours of one GPU, and of one core; what a GPU would do is a core's where there is none."""
    on_gpu, on_cores = _Lines(rows), _Lines(rows)
    compute, device = (on_gpu, assumed.gpu_tflops * TERA * assumed.utilisation) if assumed.gpus else (on_cores, 0.0)

    def given(name: str, unit: str) -> tuple[str, Callable[[float], float]]:
        return f"{unit} / {rates.given[name]:g} a second, as given", lambda amount: amount / rates.given[name] / HOUR

    if "download" in rates.given:
        formula, hours = given("download", "links")
        on_cores.add("download", formula, lambda n: hours(n / assumed.found))
    else:
        on_cores.add("download", f"links / {rates.links_per_second:g} a second", lambda n: n / assumed.found / rates.links_per_second / HOUR)
    pair = embed_flops(clip, assumed)
    if "embed" in rates.given:
        formula, of_pairs = given("embed", "rows")
        compute.add("embed", formula, of_pairs)
    else:
        speed = device or rates.embed_flops
        compute.add("embed", f"rows x {_operations(pair)} / {_speed(speed)}", lambda n: n * pair / speed / HOUR)
    if "select" in rates.given:
        formula, of_rows = given("select", "rows")
        on_cores.add("select", formula, of_rows)
    else:
        seconds = rates.select_seconds * clip.emb_width
        on_cores.add("select", f"rows^1.5 x {seconds:.2g} s", lambda n: n**1.5 * seconds / HOUR)
    if "index" in rates.given:
        formula, of_rows = given("index", "rows")
        on_cores.add("index", formula, of_rows)
    else:
        formula = (
            f"2 x {clip.emb_width} x (cells / {_speed(rates.assign_flops)} + 256 / {_speed(rates.quantise_flops)} of ivf-pq) x (rows + what is learnt from)"
        )
        on_cores.add("index", formula, lambda n: _index_hours(n, _index_of(n, config, clip), clip, rates))
    for training in trained:
        name = training.name.partition(" ")[0]
        if name in rates.given:
            formula, of_samples = given(name, f"{training.samples:.3g} samples")
            compute.add(training.name, formula, lambda n, training=training, of=of_samples: of(training.samples))  # type: ignore[misc]
            continue
        speed = device or rates.training_flops
        formula = f"{training.config.num_steps:,} steps x {training.config.batch_size:,} x {_operations(training.sample_flops)} / {_speed(speed)}"
        compute.add(training.name, formula, lambda n, training=training, speed=speed: training.samples * training.sample_flops / speed / HOUR)  # type: ignore[misc]
    return on_gpu, on_cores


def _index_hours(rows: float, choice: Choice, clip: PublishedClip, rates: Rates) -> float:
    assign, quantise = index_flops(rows, choice, clip.emb_width)
    return (assign / rates.assign_flops + quantise / rates.quantise_flops) / HOUR


def _operations(flops: float) -> str:
    return f"{flops / TERA:,.3g} TFLOP" if flops >= TERA else f"{flops / 1e9:,.3g} GFLOP"


def _speed(flops: float) -> str:
    return f"{_operations(flops)}/s"


def _in_all(rows: Sequence[float], assumed: Assumed, disk: _Lines, on_gpu: _Lines, on_cores: _Lines) -> list[Line]:
    places = range(len(rows))
    found = [Line("bytes on disk", "the sum", tuple(disk.total(place) for place in places))]
    if on_gpu.lines:
        found.append(
            Line(f"days on {assumed.gpus} GPUs", f"GPU hours / {assumed.gpus} / 24", tuple(on_gpu.total(p) / assumed.gpus / DAY_HOURS for p in places))
        )
    found.append(Line(f"days on {assumed.cores} cores", f"hours / {assumed.cores} / 24", tuple(on_cores.total(p) / assumed.cores / DAY_HOURS for p in places)))
    if assumed.price_gpu_hour and on_gpu.lines:
        found.append(Line("cost of GPUs", f"hours x {assumed.price_gpu_hour:g}", tuple(on_gpu.total(p) * assumed.price_gpu_hour for p in places)))
    if assumed.price_core_hour:
        found.append(Line("cost of cores", f"hours x {assumed.price_core_hour:g}", tuple(on_cores.total(p) * assumed.price_core_hour for p in places)))
    if assumed.price_tb_month:
        found.append(
            Line("cost of a month's storage", f"TB x {assumed.price_tb_month:g}", tuple(disk.total(p) / TERA * assumed.price_tb_month for p in places))
        )
    return found


def _of_indexes(rows: Sequence[float], config: RunConfig, clip: PublishedClip) -> list[str]:
    planned = []
    for number in rows:
        choice = _index_of(number, config, clip)
        needed = choice.bytes_a_row * number / GIBI
        more = f", for which index.max_memory_gib must be {math.ceil(needed)}, not {config.index.max_memory_gib:g}"
        planned.append(f"{choice.kind} for {number:,.0f} rows{more if needed > config.index.max_memory_gib else ''}")
    return [f"Index: {'; '.join(planned)}."]


def _notes(config: RunConfig, assumed: Assumed, rates: Rates, trained: Sequence[Training]) -> list[str]:
    found = [
        f"Assumed: {assumed.found:.0%} of the links give a picture; captions of {assumed.caption_bytes:g} bytes and {assumed.caption_tokens:g} tokens,"
        f" links of {assumed.url_bytes:g} bytes, pictures of {sizes.picture_bytes(config.download.image_size, assumed):,.0f}. Look at a sample of yours."
    ]
    if assumed.gpus:
        found.append(
            f"No rate of a GPU was measured by this project: GPU hours are operations over {assumed.gpu_tflops:g} TFLOP/s x {assumed.utilisation:.0%}"
            " (--gpu-tflops, --utilisation), counted on the networks themselves, a training step as three forward passes, or four where activations"
            " are computed again. Run `make bench` or a hundred steps on yours, and give --rate.embed, --rate.prior, --rate.decoder, --rate.upsampler"
            " in samples a second of one GPU."
        )
    measured = {name: how for name, how in rates.measured.items() if name not in rates.given and not (assumed.gpus and name in ("embed", "training"))}
    found += [f"Measured for {name}: {how}; scale by your own." for name, how in measured.items()]
    found.append(
        "The download depends on line, sites and patience more than on cores: run a shard and give --rate.download, links a second of one core."
        " `source` and `curate` read tables and bytes alone, and were not measured."
    )
    steps = ", ".join(f"{training.name} {training.samples:,.0f}" for training in trained)
    found.append(f"Samples that the config's trainings see, however many rows there are: {steps}.")
    return found
