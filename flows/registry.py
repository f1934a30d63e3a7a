"""The deployments of prefect.yaml, read strictly: Prefect passes over a key that it does not know, and deploys something else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from unclip.files import UnclipError

FILE = "prefect.yaml"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a deployment runs by itself, as cron has it."""

    __pydantic_config__ = {"extra": "forbid"}

    cron: str
    timezone: str = "UTC"
    active: bool = True


@dataclass(frozen=True, kw_only=True)
class ConcurrencyLimit:
    """How many runs of a deployment there are at once, and what becomes of one too many."""

    __pydantic_config__ = {"extra": "forbid"}

    limit: int
    collision_strategy: Literal["CANCEL_NEW", "ENQUEUE"]


@dataclass(frozen=True, kw_only=True)
class JobVariables:
    """What a worker's process work pool gives each run."""

    __pydantic_config__ = {"extra": "forbid"}

    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkPool:
    """The pool of `prefect deploy`; `unclip serve` needs none."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    job_variables: JobVariables = field(default_factory=JobVariables)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A flow as a server knows it. `entrypoint` is its dotted name."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    entrypoint: str
    concurrency_limit: ConcurrencyLimit
    parameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Sequence[Schedule] = ()
    work_pool: WorkPool | None = None

    def __post_init__(self) -> None:
        if ":" in self.entrypoint or "." not in self.entrypoint:  # Prefect would load the file under a bare name that others may have
            raise ValueError(f"expected a dotted name such as flows.everything.everything, got {self.entrypoint!r}")


@dataclass(frozen=True, kw_only=True)
class _File:
    __pydantic_config__ = {"extra": "forbid"}

    name: str
    deployments: Sequence[Deployment]
    definitions: Mapping[str, Any] = field(default_factory=dict)  # for YAML's anchors


def own_file() -> Path:
    """The prefect.yaml that comes with the package: beside this file in an installed one, at the top of a checkout."""
    here = Path(__file__).parent
    return here / FILE if (here / FILE).is_file() else here.parent / FILE


def read_deployments(file: Path) -> Sequence[Deployment]:
    """The deployments of a file.

    Raises:
        UnclipError: there is no such file, or it has an unknown key or a wrong value; the message gives its path.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise UnclipError(f"expected the deployments in {file}, but there is no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnclipError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    try:
        deployments = TypeAdapter(_File).validate_python(content).deployments
    except ValidationError as error:
        raise UnclipError(f"{file}: " + "; ".join(_explain(dict(problem)) for problem in error.errors())) from None
    if not deployments:
        raise UnclipError(f"{file}: expected deployments, got none")
    named = [(one.entrypoint, one.name) for one in deployments]
    if twice := sorted({f"{entrypoint} {name}" for entrypoint, name in named if named.count((entrypoint, name)) > 1}):
        raise UnclipError(f"{file}: expected each deployment once, got {', '.join(twice)} more than once")
    return deployments


def _explain(problem: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        return f"unknown key {path}"
    return f"{path or 'the file'}: {str(problem['msg']).removeprefix('Value error, ')}"
