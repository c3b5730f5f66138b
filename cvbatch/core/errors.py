"""Every way a job can end other than well, and the exit status each one means.

    CvbatchError                 exit 1: stopped midway; the same command goes on
    ├── StoreError               the store stayed unreachable after its retries
    │   ├── NotFoundError        no object, bucket or file has that name
    │   └── AccessDeniedError    the credentials were refused
    ├── TrainingError            a loss that is no number, data that ends early, a full disk
    └── RefusedError             exit 2: nothing was written
        ├── ConfigError          the job file or the command line
        ├── SourceError          what is to be read: missing, empty, not of that format
        ├── SinkError            where results go: another job's, not writable
        └── ModelError           a model that is unknown, unreadable or does not fit its task

A bad image is not here: it is data, a `cvbatch.core.types.Failure`.
"""


class CvbatchError(Exception):
    """A job that could not go on. The message names the value, the rule and the remedy."""

    exit_status = 1


class StoreError(CvbatchError):
    """The store did not answer, refused, or has no such object."""


class NotFoundError(StoreError):
    """No object, bucket or file has that name."""


class AccessDeniedError(StoreError):
    """The store knows the name but not these credentials."""


class TrainingError(CvbatchError):
    """Training cannot go on; what its last checkpoint holds is good."""


class RefusedError(CvbatchError):
    """Refused before anything was written."""

    exit_status = 2


class ConfigError(RefusedError):
    """The job file or the command line is wrong; every fault found is in the message."""


class SourceError(RefusedError):
    """The source is missing, empty, or not of the format it was said to have."""


class SinkError(RefusedError):
    """The sink holds another job's result, or cannot be written."""


class ModelError(RefusedError):
    """The model is unknown, unreadable, or its outputs do not fit its task."""
