"""The report as one HTML page that opens without a network: made of the report's JSON, pictures inside."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

REPORT, PRIOR = "report.html", "prior.html"
MISSING = "–"


def render(report: Mapping[str, Any], folder: Path, *, template: str = REPORT) -> str:
    """The page of a report whose pictures lie under `folder`. Everything from outside, captions first, is escaped."""
    loader = jinja2.FunctionLoader(lambda name: resources.files("unclip.evaluation").joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": share, "count": count, "decimal": decimal, "tenths": tenths, "ends": ends, "seconds": seconds, "as_json": as_json}
    environment.globals["picture"] = lambda name: data_uri(folder / name)
    return environment.get_template(template).render(report=report)


def data_uri(path: Path) -> str:
    """A PNG as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def share(value: float | None) -> str:
    """0.625 -> "62.5 %"."""
    return MISSING if value is None else f"{value:.1%}".replace("%", " %")


def count(value: float | None) -> str:
    """12345 -> "12,345"."""
    return MISSING if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """0.62512 -> "0.625"."""
    return MISSING if value is None else f"{value:.3f}"


def tenths(value: float | None) -> str:
    """1234.56 -> "1,234.6"."""
    return MISSING if value is None else f"{value:,.1f}"


def ends(interval: Sequence[float], kind: str) -> str:
    """[0.011, 0.061] -> "1.1 to 6.1" for a "share", in per cent, and "0.011 to 0.061" for a "decimal"."""
    return " to ".join(f"{end * 100:.1f}" if kind == "share" else f"{end:.3f}" for end in interval)


def seconds(value: float) -> str:
    """75 -> "1 min 15 s"."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def as_json(value: Any) -> str:
    """Indented JSON; the page escapes it."""
    return json.dumps(value, indent=2, sort_keys=True)
