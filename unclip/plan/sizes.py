"""Bytes on disk, by formula: each is what the stage writes for so many pairs, as tests/plan/test_sizes.py weighs it."""

from unclip.data.index_kinds import Choice
from unclip.plan.assumed import Assumed

FLOAT32, FLOAT16, INT64 = 4, 2, 8
LIST_BYTES = 5  # that Parquet takes to say where a row's vector ends
TAR_BLOCK = 512  # a member has a block for its name, and fills up its last one
KEY_CHARS, ID_CHARS, SHA_CHARS = 10, 16, 64
JSON_CHARS = 245  # of a picture's facts without caption and link: names, key, id, hash, sides
COMPRESSED_HEX = 0.53  # of a byte, that a hexadecimal digit takes after ZSTD
COMPRESSED_TOKEN = 2.0  # bytes of a token id, of 49,408
COMPRESSED_NUMBERS = 3.0  # of a row's key, sides, split and the like, in Parquet
CLUSTER_BYTES = 14.0  # of a row that `select` judged


def picture_bytes(image_size: int, assumed: Assumed) -> float:
    """Of an encoded picture whose shorter side is `image_size`."""
    return assumed.bytes_per_pixel * image_size**2


def source_bytes(rows: float, assumed: Assumed) -> float:
    """The table of all links: of each its id, link and caption, compressed."""
    return rows / assumed.found * (COMPRESSED_HEX * ID_CHARS + assumed.text_left * (assumed.url_bytes + assumed.caption_bytes) + 1)


def shard_bytes(rows: float, picture: float, assumed: Assumed) -> float:
    """Tar files of picture, caption and facts, and the table of what came of every link."""
    facts = JSON_CHARS + assumed.caption_bytes + assumed.url_bytes
    members = picture + TAR_BLOCK / 2 + TAR_BLOCK * (_blocks(assumed.caption_bytes) + _blocks(facts)) + 3 * TAR_BLOCK
    table = COMPRESSED_HEX * SHA_CHARS + COMPRESSED_NUMBERS
    return rows * (members + table) + source_bytes(rows, assumed)


def _blocks(num_bytes: float) -> int:
    return -(-round(num_bytes) // TAR_BLOCK)


def pooled_bytes(rows: float, emb_width: int) -> float:
    """Image and text embedding of each pair, float16, stored plain."""
    return rows * 2 * (FLOAT16 * emb_width + LIST_BYTES)


def text_state_bytes(rows: float, text_width: int, assumed: Assumed) -> float:
    """The caption's token states, float16, trimmed to the caption, stored plain."""
    return rows * (FLOAT16 * text_width * assumed.caption_tokens + LIST_BYTES)


def store_rest_bytes(rows: float, assumed: Assumed) -> float:
    """All else of the store: caption, link, hash, token ids, similarity, compressed."""
    text = assumed.text_left * (assumed.caption_bytes + assumed.url_bytes)
    return rows * (text + COMPRESSED_HEX * SHA_CHARS + COMPRESSED_TOKEN * assumed.caption_tokens + FLOAT32 + COMPRESSED_NUMBERS)


def cache_bytes(rows: float, emb_width: int, text_width: int, assumed: Assumed) -> float:
    """The training cache: all vectors once more, as arrays that training maps, with an offset, key and caption each."""
    states = rows * (FLOAT16 * text_width * assumed.caption_tokens + INT64) if text_width else 0.0
    return rows * 2 * FLOAT16 * emb_width + states + rows * (assumed.text_left * assumed.caption_bytes + 2)


def selected_bytes(rows: float) -> float:
    """The table of what `select` decided."""
    return rows * CLUSTER_BYTES


def index_bytes(rows: float, choice: Choice, emb_width: int) -> float:
    """The index's file: the codes, of kinds with cells the ids and centres, and of ivf-pq the codes that it scores again with."""
    again = emb_width if choice.kind == "ivf-pq" else 0
    centres = FLOAT32 * emb_width * (choice.num_lists + (256 if choice.kind == "ivf-pq" else 0))
    return rows * (choice.bytes_a_row + again) + centres


def keys_bytes(rows: float, assumed: Assumed) -> float:
    """The table of the index's keys, as it lies in memory: key, caption, link, split, sides, similarity, and four offsets."""
    return rows * (KEY_CHARS + assumed.caption_bytes + assumed.url_bytes + len("train") + 3 * 4 + 4 * 4)


def checkpoint_bytes(parameters: float, *, num_averages: int, num_moments: int, kept: int) -> float:
    """Checkpoints of a network: weights, averages and the optimizer's moments in float32, each as often as it is kept."""
    return kept * FLOAT32 * parameters * (1 + num_averages + num_moments)
