"""Text of strangers made fit to be shown: on a terminal, in a spreadsheet, on a page that reads markdown.

Captions, links and file names come from strangers. What a terminal takes for a command (escape sequences), what turns the
direction of writing round, and what has no sign of its own is shown by its number instead.
"""

import re

# C0 and C1 controls with DEL; marks, embeddings, overrides and isolates of direction; line and paragraph separators; halves of pairs
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")
_KEPT_IN_MESSAGES = "\n\t"  # our own messages have lines
_FORMULA = ("=", "+", "-", "@")  # what a cell of a spreadsheet begins with that is to be computed
_MARKDOWN = re.compile(r"[\\`\[\]<>|]")  # of links, pictures, code, HTML and tables; emphasis does no harm


def printable(text: str) -> str:
    """The text in one line, with the number of each character in place of those that are unfit, such as \\x1b."""
    return _UNFIT.sub(lambda found: _number(found[0]), text)


def printable_lines(text: str) -> str:
    """The same with line ends and tabs left as they are."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in _KEPT_IN_MESSAGES else _number(found[0]), text)


def _number(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def spreadsheet_cell(text: str) -> str:
    """The text as a cell that no spreadsheet computes: an apostrophe stands before what would be a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def markdown_text(text: str) -> str:
    """The text as markdown that holds no link, picture, code or HTML, and fits into a table."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))
