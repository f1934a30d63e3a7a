"""Which FAISS index for how many vectors: the kinds with what each costs, and the rule that chooses among them.

| kind     | bytes a vector in memory | answers                                        | chosen                                   |
|----------|--------------------------|------------------------------------------------|------------------------------------------|
| fp32     | 4 E                      | exact                                          | up to a million rows, the first that fits |
| fp16     | 2 E                      | exact but for the rounding of the store itself |                                          |
| int8     | E                        | exact but for 8 bits a coordinate              |                                          |
| ivf-int8 | E + 8                    | the nearest cells only (`nprobe` of them)      | above a million rows, the first that fits |
| ivf-pq   | E / 2 + 8 down to 8 + 8  | cells, product-quantised; the best candidates  |                                          |
|          |                          | are scored again with 8 bits a coordinate      |                                          |

All are read from disk by memory mapping: what an answer does not touch stays there, above all the codes that ivf-pq scores
its candidates with, which are E bytes a vector more on disk.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import faiss as typed_faiss
import numpy as np

from unclip.files import UnclipError

faiss: Any = typed_faiss  # its stubs know the constructors of SWIG alone, not the keywords that FAISS adds to them

Kind = Literal["fp32", "fp16", "int8", "ivf-int8", "ivf-pq"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EXACT: tuple[Kind, ...] = ("fp32", "fp16", "int8")
EXACT_ROWS = 1_000_000  # up to here every vector is compared: about 20 ms a query at 512 dimensions
ID_BYTES = 8  # of a vector in a cell
MIN_CODE = 8  # bytes of a product-quantised vector
LISTS_A_ROOT = 4  # cells for each square root of the number of rows (the rule of thumb of FAISS)
ROWS_A_LIST = 64  # of the training sample; FAISS asks for at least 39
PQ_ROWS = 256 * ROWS_A_LIST  # a product quantiser learns 256 centroids
CANDIDATES = 16  # of ivf-pq for each answer, scored again


@dataclass(frozen=True)
class Choice:
    """A kind with its sizes: `num_lists` cells (0 without cells), `code_bytes` of a vector's code in memory."""

    kind: Kind
    num_lists: int
    code_bytes: int

    @property
    def has_cells(self) -> bool:
        """Whether only some cells are searched, so that recall is bought with time."""
        return self.num_lists > 0

    @property
    def bytes_a_row(self) -> int:
        """Memory that a vector takes."""
        return self.code_bytes + (ID_BYTES if self.has_cells else 0)

    @property
    def training_rows(self) -> int:
        """How many vectors it learns from; 0 where nothing is learned."""
        if self.kind in ("fp32", "fp16"):
            return 0
        return max(PQ_ROWS, ROWS_A_LIST * self.num_lists)


def choose(kind: Kind | Literal["auto"], num_rows: int, width: int, max_bytes: int) -> Choice:
    """The index for `num_rows` vectors of `width` dimensions: the kind asked for, or by the rule of the table above.

    Raises:
        UnclipError: nothing fits into `max_bytes`.
    """
    choices = choices_for(num_rows, width)
    if kind == "auto":
        choices = [choice for choice in choices if not (choice.kind in EXACT and num_rows > EXACT_ROWS)]
    else:
        choices = [choice for choice in choices if choice.kind == kind]
    fitting = [choice for choice in choices if choice.bytes_a_row * num_rows <= max_bytes]
    if not fitting:
        least = choices[-1].bytes_a_row * num_rows
        raise UnclipError(
            f"an index of the kind {choices[-1].kind} over {num_rows:,} vectors of {width} dimensions takes {least / 2**30:.2f} GiB of memory,"
            f" expected at most {max_bytes / 2**30:.2f}; raise index.max_memory_gib{'' if kind == 'auto' else ', or choose another index.kind'}"
        )
    return fitting[0]


def choices_for(num_rows: int, width: int) -> list[Choice]:
    """All kinds for so many vectors, from the most memory to the least."""
    lists = _num_lists(num_rows)
    codes = [width // parts for parts in (2, 4, 8, 16, 32) if width % parts == 0 and width // parts >= MIN_CODE] or [width]
    return [
        Choice("fp32", 0, 4 * width),
        Choice("fp16", 0, 2 * width),
        Choice("int8", 0, width),
        Choice("ivf-int8", lists, width),
        *(Choice("ivf-pq", lists, code) for code in codes),
    ]


def _num_lists(num_rows: int) -> int:
    """Cells for so many rows: a power of two, so that it changes seldom as the rows grow, with 64 rows to learn each from."""
    wanted = max(1.0, LISTS_A_ROOT * math.sqrt(num_rows))
    most = max(1, num_rows // ROWS_A_LIST)
    return min(2 ** round(math.log2(wanted)), 2 ** int(math.log2(most)))


def make(choice: Choice, width: int) -> Any:
    """An empty index of inner products, not yet trained. "np" leaves out polysemous codes, which nothing here reads and which take most of the time."""
    specification = {
        "fp32": "Flat",
        "fp16": "SQfp16",
        "int8": "SQ8",
        "ivf-int8": f"IVF{choice.num_lists},SQ8",
        "ivf-pq": f"IVF{choice.num_lists},PQ{choice.code_bytes}x8np,Refine(SQ8)",
    }[choice.kind]
    return faiss.index_factory(width, specification, faiss.METRIC_INNER_PRODUCT)


def cells_of(index: Any) -> Any:
    """The part of an index that has cells; None where it has none."""
    try:
        return faiss.extract_index_ivf(faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index)
    except RuntimeError:
        return None


def distance_to_cells(index: Any, vectors: np.ndarray) -> float:
    """How far unit vectors (n, E) lie from the centres of their cells: the mean of 1 - cosine to the nearest. It grows as data drift."""
    quantizer = cells_of(index).quantizer
    centres = np.stack([quantizer.reconstruct(number) for number in range(quantizer.ntotal)])
    norms = np.maximum(np.linalg.norm(centres, axis=1), np.finfo(np.float32).tiny)
    nearest = np.concatenate([(chunk @ centres.T / norms).max(axis=1) for chunk in np.array_split(vectors, max(1, len(vectors) // 8192))])
    return float(1.0 - nearest.mean())


def search_parameters(index: Any, *, nprobe: int, rows: np.ndarray | None) -> Any:
    """What a search is told: how many cells to look into, and a bool for each vector, whether it may be found."""
    selector = {} if rows is None else {"sel": faiss.IDSelectorBitmap(np.packbits(rows, bitorder="little"))}
    if cells_of(index) is None:
        return faiss.SearchParameters(**selector) if selector else None
    of_cells = faiss.SearchParametersIVF(nprobe=nprobe, **selector)
    if not isinstance(index, faiss.IndexRefine):
        return of_cells
    return faiss.IndexRefineSearchParameters(k_factor=CANDIDATES, base_index_params=of_cells)
