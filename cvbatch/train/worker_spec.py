"""What a training worker is given."""

from __future__ import annotations

from dataclasses import dataclass

from cvbatch.config.train import TrainJob
from cvbatch.datasets.reader import LabelledDataset, LabelSpec
from cvbatch.storage.store import Storage


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker must know."""

    storage: Storage
    job: TrainJob
    data: LabelledDataset
    wanted: LabelSpec
    image_size: tuple[int, int]
    channels: int
    metric: str
    num_workers: int
    steps_per_epoch: int
    begun_uri: str  # the .keras file that the network begins as
    sink_uri: str
    lease_token: str = ""  # of the driver's lease, which is checked before each checkpoint
