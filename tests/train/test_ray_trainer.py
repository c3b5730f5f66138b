"""Driver of a training on Ray."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from cvbatch.core.errors import CvbatchError

pytestmark = pytest.mark.ray


def test_a_lost_lease_stops_a_training_inside_an_epoch(ray_session, monkeypatch):
    from cvbatch.train import ray_trainer

    num_checks = 0

    def check():
        nonlocal num_checks
        num_checks += 1
        if num_checks == 2:
            raise CvbatchError("taken over")

    spec = SimpleNamespace(job=SimpleNamespace(training=SimpleNamespace(num_epochs=1)))
    endless = threading.Event()
    trainer = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=endless.wait()))
    monkeypatch.setattr(ray_trainer, "_trainer", lambda spec, log: trainer)
    try:
        with pytest.raises(CvbatchError, match="taken over"):
            ray_trainer.run_training(spec, None, check)
    finally:
        endless.set()
