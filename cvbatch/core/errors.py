"""Exceptions of cvbatch, each with the exit status of the command.

    CvbatchError                 exit 1: interrupted; run the same command to resume
    ├── StoreError               the storage failed, also after retries
    │   ├── NotFoundError        no such object, bucket or file
    │   └── AccessDeniedError    the credentials were rejected
    ├── TrainingError            NaN or infinite loss, data that end early, a full disk
    └── RefusedError             exit 2: nothing was written
        ├── ConfigError          the job file or the command line is invalid
        ├── SourceError          the input is missing, empty or of another format
        ├── SinkError            the sink contains another job's results or is not writable
        └── ModelError           the model is unknown, unreadable or does not fit its task

A bad image is no exception: it is data, a `cvbatch.core.types.Failure`.
"""


class CvbatchError(Exception):
    """A job cannot continue. The message names the value, the rule and the remedy."""

    exit_status = 1


class StoreError(CvbatchError):
    """A storage request failed: no response, an error response, or no such object."""


class NotFoundError(StoreError):
    """No object, bucket or file has that name."""


class AccessDeniedError(StoreError):
    """The storage rejects the credentials for that name."""


class TrainingError(CvbatchError):
    """The training cannot continue; its last checkpoint is valid."""


class RefusedError(CvbatchError):
    """The job was refused before anything was written."""

    exit_status = 2


class ConfigError(RefusedError):
    """The job file or the command line is invalid; the message lists all errors."""


class SourceError(RefusedError):
    """The source is missing, empty, or not of the specified format."""


class SinkError(RefusedError):
    """The sink contains another job's results, or cannot be written."""


class ModelError(RefusedError):
    """The model is unknown, unreadable, or its outputs do not fit its task."""
