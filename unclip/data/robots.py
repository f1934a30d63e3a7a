"""What a site says about being used: opt-outs in the headers of an answer, and its rules for robots."""

import re
from collections.abc import Iterable

from protego import Protego

ROBOT_NAME = "unclip"  # the name by which a site may address us, in an X-Robots-Tag header and in robots.txt
# what a page says when it wants no part in this; `none` is short for noindex and nofollow
OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex", "noml", "none")
MAX_BYTES = 500_000  # of robots.txt that are read; RFC 9309 asks for at least 500 KiB to be parsed

_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon of their own
_ADDRESSED = re.compile(r"\s*([a-z0-9_*-]+)\s*:(.*)", re.DOTALL)


def opt_out(tags: Iterable[str]) -> str:
    """The first directive of these X-Robots-Tag headers by which an image may not be used by us, "" where there is none.

    "otherbot: noai" speaks to others, "unclip: noai" to us, and a colon may belong to a directive: "max-image-preview: none".
    """
    for tag in tags:
        addressed = "*"
        for piece in tag.lower().split(","):
            match = _ADDRESSED.fullmatch(piece)
            if match and match[1] in _VALUED:
                continue
            if match:
                addressed, piece = match[1], match[2]
            if addressed in ("*", ROBOT_NAME) and piece.strip() in OPT_OUTS:
                return piece.strip()
    return ""


class Rules:
    """The rules of one site, from the text of its robots.txt."""

    def __init__(self, text: str) -> None:
        self._rules = Protego.parse(text)

    def allow(self, url: str) -> bool:
        """Whether a robot of our name may follow this link."""
        return bool(self._rules.can_fetch(url, ROBOT_NAME))
