"""Whether tonight's models take the place of those in use: a few numbers of their reports, and by how much each may fall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Metric = Literal["pictures", "binding", "prior_recall_at_10"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One number that must not fall.

    Attributes:
        metric: "pictures" is the share of pictures from captions that are right by the report's first judge, "binding" that of
            those with the right attributes that also bind them rightly (shapes only); "prior_recall_at_10" is
            the prior's, without pixels. Means over the held-out splits.
        may_fall_by: of a share, so 0.02 allows 80 % after 82 %: what chance alone moves should be allowed.
    """

    __pydantic_config__ = {"extra": "forbid"}

    metric: Metric
    may_fall_by: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.may_fall_by <= 1.0:
            raise ValueError(f"may_fall_by must be in [0, 1], got {self.may_fall_by}")


@dataclass(frozen=True, kw_only=True)
class NightConfig:
    """What a run does with new rows where there are models already.

    Attributes:
        steps: the share of each model's num_steps that a night goes on for.
        learning_rate: the share of each model's peak learning rate that a night begins with; it falls to 0 by the night's end.
        max_minutes: bound of a night's training, for each model; 0 is none.
        rules: what is compared with the models in use. Both are measured in the same night, on the same data.
        disk_low_gb: less than that, free after a run, is told to the server, whose automations can tell a person.
        keep: models that were in use before, and ones that were refused, that are kept of each; older ones are removed.
    """

    __pydantic_config__ = {"extra": "forbid"}

    steps: float = 0.1
    learning_rate: float = 0.2
    max_minutes: float = 60.0
    rules: tuple[Rule, ...] = (Rule(metric="pictures", may_fall_by=0.05), Rule(metric="prior_recall_at_10", may_fall_by=0.02))
    keep: int = 2
    disk_low_gb: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if self.max_minutes < 0:
            raise ValueError(f"max_minutes must not be negative, got {self.max_minutes}")
        if self.keep < 0:
            raise ValueError(f"keep must not be negative, got {self.keep}")


@dataclass(frozen=True)
class Verdict:
    """What a rule says. A number is None where the report has none, such as binding where no picture has the right attributes."""

    rule: Rule
    before: float | None
    after: float | None

    @property
    def passed(self) -> bool:
        """Whether the number did not fall by more than it may. What could not be measured before can't have fallen."""
        if self.before is None:
            return True
        return self.after is not None and self.after >= self.before - self.rule.may_fall_by

    def __str__(self) -> str:
        state = "held" if self.passed else "FELL"
        return f"{self.rule.metric} {state}: {_shown(self.before)} before, {_shown(self.after)} now, may fall by {self.rule.may_fall_by:g}"


def judge(before: Mapping[str, Any], after: Mapping[str, Any], rules: Sequence[Rule]) -> list[Verdict]:
    """What each rule says of two reports."""
    earlier, later = numbers_of(before), numbers_of(after)
    return [Verdict(rule, earlier[rule.metric], later[rule.metric]) for rule in rules]


def numbers_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers that rules speak of."""
    ladder, chosen = report["ladder"], report["chosen"]
    row = next(row for row in ladder["rows"] if row["name"] == chosen)
    recalls = [found["rows"][found["chosen"]]["recall_at_10"] for found in report["prior"].values()]
    found: dict[str, float | None] = {
        "pictures": row["splits"][ladder["main"]]["mean"],
        "binding": row["binding"] and row["binding"]["mean"],
        "prior_recall_at_10": sum(recalls) / len(recalls) if recalls else None,
    }
    assert found.keys() == set(get_args(Metric))
    return found


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
