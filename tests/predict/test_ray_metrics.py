"""Stages of a job are timed once each; metrics have the names that the dashboards use."""

import pytest

from cvbatch.predict.stage_timer import STAGES, StageTimer
from tests.support.prometheus import NAMES


def test_a_new_timer_is_empty():
    assert StageTimer().seconds == dict.fromkeys(STAGES, 0.0)
    assert StageTimer.from_json([]).as_json() == StageTimer().as_json()


def test_each_second_counts_once_for_the_stage_that_took_it(monkeypatch):
    """Nested stages process three items, each stage with its own duration."""
    now = [0.0]
    monkeypatch.setattr("cvbatch.predict.stage_timer.time.perf_counter", lambda: now[0])

    def taking(seconds, items):
        for item in items:
            now[0] += seconds
            yield item

    timer = StageTimer()
    read = timer.measure_items("read", taking(1, "abc"))
    decoded = timer.measure_items("decode", taking(10, read))
    now[0] += 10_000  # outside the stages
    with timer.measure("write"):
        assert list(taking(1000, timer.measure_items("predict", taking(100, decoded)))) == list(
            "abc"
        )
    now[0] += 10_000
    assert timer.seconds == {"read": 3, "decode": 30, "predict": 300, "write": 3000}
    doubled = StageTimer.from_json([timer.as_json(), timer.as_json()])
    assert doubled.seconds == {stage: 2 * s for stage, s in timer.seconds.items()}


@pytest.mark.ray
def test_names_and_tags_are_those_of_the_dashboards():
    from cvbatch.predict.ray_metrics import METRIC_SPECS

    assert {name: {"run", spec.tag} - {""} for name, spec in METRIC_SPECS.items()} == NAMES
