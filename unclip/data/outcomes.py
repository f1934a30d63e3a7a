"""What img2dataset says about a row, as one of the closed list of reasons."""

import re

from unclip.data.contracts import REASONS, Reason

KEPT = "kept"
TRANSIENT: tuple[Reason, ...] = ("server error", "timed out", "connection failed", "too many requests")  # worth another try

_OURS = re.compile(rf"unclip: ({'|'.join(map(re.escape, REASONS))}): (.*?)>?$")
_WAIT = re.compile(r"; retry after (\d+) s$")  # as web.py says it
# the first that is found in the text counts
_DOWNLOAD: tuple[tuple[str, Reason], ...] = (
    (r"is not allowed|unknown url type", "url not http(s)"),
    (r"HTTP Error (404|410)\b", "not found"),
    (r"HTTP Error (401|402|403|407|451)\b", "forbidden"),
    (r"HTTP Error 429\b", "too many requests"),
    (r"HTTP Error (408|504)\b|timed out", "timed out"),
    (r"HTTP Error 5\d\d\b", "server error"),
    (r"HTTP Error", "other"),
    (r"no host given|nonnumeric port|control characters|InvalidURL|Invalid IPv6|codec can't", "url malformed"),
    (r"urlopen error|Remote end closed|Connection|IncompleteRead|Errno|SSL|reset by peer", "connection failed"),
)
_IMAGE: tuple[tuple[str, Reason], ...] = (
    (r"image too small", "image too small"),
    (r"aspect ratio", "aspect ratio"),
    (r"area too large|CV_IO_MAX_IMAGE", "too large"),
    (r"", "image broken"),
)


def outcome(status: str, message: str | None) -> tuple[str, str]:
    """ "kept" or a Reason, and the detail, from img2dataset's `status` and `error_message` of a row."""
    if status == "success":
        return KEPT, ""
    text = " ".join((message or "").split())
    ours = _OURS.search(text)
    if ours:
        return ours[1], ours[2]
    table = _IMAGE if status == "failed_to_resize" else _DOWNLOAD
    found = (reason for pattern, reason in table if re.search(pattern, text))
    return next(found, "other"), text


def seconds_to_wait(detail: str) -> float:
    """How long a site has asked us, by Retry-After, to leave it alone; 0 where it has not."""
    found = _WAIT.search(detail)
    return float(found[1]) if found else 0.0
