"""unCLIP (DALL-E 2, arXiv 2204.06125): from a list of image links and captions to a text-to-image model, in stages.

For Python, `unclip.open("data/demo")` gives the models of a root and all that they do: see `unclip.api`. Importing the
package itself imports nothing else; what is named here is fetched when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip.api import Unclip, open
    from unclip.files import UnclipError
    from unclip.generate import GenerateConfig

HOMES = {"open": "unclip.api", "Unclip": "unclip.api", "UnclipError": "unclip.files", "GenerateConfig": "unclip.generate"}

__all__ = ["GenerateConfig", "Unclip", "UnclipError", "open"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'unclip' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
