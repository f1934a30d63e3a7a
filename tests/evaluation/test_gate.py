"""When tonight's models take the place of those in use."""

from typing import Any

import pytest

from unclip.evaluation.gate import NightConfig, Rule, judge, numbers_of

PICTURES = Rule(metric="pictures", may_fall_by=0.05)
BINDING = Rule(metric="binding")


def report(pictures: float, recalls: dict[str, float], binding: float | None = None) -> dict[str, Any]:
    """As much of a report as rules read."""
    rows = [
        {"name": "true embedding", "splits": {"all held out": {"mean": 1.0}}, "binding": {"mean": 1.0}},
        {"name": "diffusion best of 2", "splits": {"all held out": {"mean": pictures}}, "binding": None if binding is None else {"mean": binding}},
    ]
    prior = {
        split: {"chosen": "diffusion", "rows": {"diffusion": {"recall_at_10": value}, "linear": {"recall_at_10": 1.0}}} for split, value in recalls.items()
    }
    return {"chosen": "diffusion best of 2", "ladder": {"main": "all held out", "rows": rows}, "prior": prior}


def test_numbers_are_those_of_the_pictures_that_users_get() -> None:
    assert numbers_of(report(0.5, {"a": 0.2, "b": 0.6}, 0.9)) == {"pictures": 0.5, "binding": 0.9, "prior_recall_at_10": pytest.approx(0.4)}


@pytest.mark.parametrize(("after", "passed"), [(0.60, True), (0.5501, True), (0.5499, False), (0.1, False)])
def test_a_number_may_fall_by_as_much_as_its_rule_says(after: float, passed: bool) -> None:
    (verdict,) = judge(report(0.6, {"a": 1.0}), report(after, {"a": 1.0}), [PICTURES])
    assert verdict.passed is passed
    assert ("held" if passed else "FELL") in str(verdict)


def test_what_was_not_measured_before_cannot_fall_and_what_is_not_measured_now_did() -> None:
    without, having = report(1.0, {"a": 1.0}), report(1.0, {"a": 1.0}, binding=0.1)
    assert judge(without, having, [BINDING])[0].passed
    assert judge(without, without, [BINDING])[0].passed
    assert not judge(having, without, [BINDING])[0].passed


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"steps": 0.0}, {"learning_rate": 1.5}, {"max_minutes": -1.0}, {"keep": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NightConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="may_fall_by"):
        Rule(metric="pictures", may_fall_by=2.0)
