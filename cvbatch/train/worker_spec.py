"""Everything that a training worker needs to run, as one picklable object, and its position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cvbatch.config.train import TrainJob
from cvbatch.datasets.reader import LabelledDataset, LabelSpec
from cvbatch.storage.store import Storage


class Position(NamedTuple):
    """How far a training is, inside an epoch."""

    epoch: int  # counted from 1
    num_epochs: int
    done: float  # share of the steps of the epoch, 0 to 1
    loss: float  # mean over these steps

    @property
    def text(self) -> str:
        """Such as "epoch 3/40 · 25 % · loss 0.52"."""
        part = "validation" if self.done == 1 else f"{100 * self.done:.0f} %"
        return f"epoch {self.epoch}/{self.num_epochs} · {part} · loss {self.loss:.4g}"


@dataclass(frozen=True)
class WorkerSpec:
    """The job, its data and the location of the initial model; the same for all workers."""

    job: TrainJob
    data: LabelledDataset
    label_spec: LabelSpec
    image_size: tuple[int, int]  # height, width
    channels: int  # of the network's input: 3, or 1 for greyscale
    metric: str  # selects the best checkpoint
    num_workers: int
    steps_per_epoch: int
    initial_model_uri: str  # .keras file with the initial weights
    sink_uri: str
    lease_token: str = ""  # of the driver's lease on the sink, checked before each checkpoint

    @property
    def storage(self) -> Storage:
        """Return the storage with the retry policy of the job."""
        return Storage(self.job.run.retry_policy)
