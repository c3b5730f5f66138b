"""Everything that a training worker needs to run, as one picklable object."""

from __future__ import annotations

from dataclasses import dataclass

from cvbatch.config.train import TrainJob
from cvbatch.datasets.reader import LabelledDataset, LabelSpec
from cvbatch.storage.store import Storage


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
