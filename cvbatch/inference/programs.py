"""From the job's models to programs: built and compiled once, by one process, kept for all.

`identify` is cheap and runs in the driver: what a model is, by the hash of its file. `build` needs
TensorFlow and runs in a process of its own, which then ends and takes its memory with it. A
worker only reads program files.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from cvbatch.config.base import NAMED_WEIGHTS
from cvbatch.config.models import ModelConfig
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ModelError, StoreError
from cvbatch.core.types import ModelSpec
from cvbatch.core.version import __version__
from cvbatch.inference.engines import ENGINES, Program
from cvbatch.models import model_files
from cvbatch.models.metadata import DEMO_FILES, read_card
from cvbatch.storage import store
from cvbatch.storage.store import Storage

MAX_CLASS_FILE_BYTES = 4 << 20
_FILE_FORMAT = 2  # of program files; those of another are not looked for
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time in the zip: the same program is the same bytes


@dataclass(frozen=True)
class Identity:
    """What a model of the job is: enough to fingerprint it, nothing that needs TensorFlow."""

    content: str  # SHA-256 of its files, or its name and the name of its weights
    classes: tuple[str, ...] | None  # as the job or the file's card says; None: not said
    file: Path | None  # the .keras file, here
    weights_file: Path | None  # here
    sha256: str | None = None  # of the one of the two that there is

    @property
    def fingerprint(self) -> str:
        """Return the text that stands for the model in the job's fingerprint."""
        return json.dumps([self.content, self.classes])


@dataclass(frozen=True)
class BuildRequest:
    """What the compiling process is asked for."""

    config: ModelConfig
    identity: Identity
    engine: str
    precision: str
    batch_size: int

    @property
    def key(self) -> str:
        """Return a name for the program that changes with all that could change the program."""
        said = {
            "config": self.config.model_dump(mode="json", exclude={"sha256"}),
            "identity": self.identity.fingerprint,
            "engine": self.engine,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "versions": [version("keras"), version("tensorflow"), __version__, _FILE_FORMAT],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class BuiltProgram:
    """A compiled model with all a worker must know of it."""

    spec: ModelSpec
    engine: str  # that runs it: "tensorflow" where LiteRT lacks an operation
    names: tuple[str, ...]  # of the outputs
    batch_size: int
    bytes_per_image: int  # held for an image of the batch, pixels and feature maps, at least
    note: str  # what the user should hear once; "" for nothing
    payload: bytes
    parameters: int | None = None  # of the network; None: its layers cannot be told
    multiply_adds: int | None = None  # for one image, likewise

    @property
    def weight_bytes(self) -> int:
        """Return what the loaded program holds whatever the batch: its weights are in it."""
        return len(self.payload)

    def to_bytes(self) -> bytes:
        """Return the program file: a zip of `program.json` and the payload, both stored."""
        facts = {key: value for key, value in asdict(self).items() if key != "payload"}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("program.json", _EPOCH), json.dumps(facts))
            archive.writestr(zipfile.ZipInfo("payload", _EPOCH), self.payload)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> BuiltProgram:
        """Return the program in a program file.

        Raises:
            ModelError: the file is damaged.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                facts = json.loads(archive.read("program.json"))
                payload = archive.read("payload")
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ModelError(
                f"a program file under _cvbatch/programs is damaged ({error}); delete it"
            ) from None
        said = facts.pop("spec")
        spec = ModelSpec(**{**said, "classes": tuple(said["classes"])})
        names = tuple(facts.pop("names"))
        return BuiltProgram(spec=spec, names=names, payload=payload, **facts)

    def load(self, threads: int) -> Program:
        """Return the program ready to run in this process."""
        return ENGINES[self.engine].load(self.payload, self.names, threads)


def identify(storage: Storage, config: ModelConfig) -> Identity:
    """Return what a model of the job is.

    Raises:
        ModelError: a file it names cannot be had or is not the one that the job file pins, or its
            class file is not one name a line.
    """
    if config.weights == "demo":
        file = DEMO_FILES.get(config.model)
    else:
        file = model_files.fetch(storage, config.model) if config.model.endswith(".keras") else None
    is_named = config.weights is None or config.weights in NAMED_WEIGHTS
    weights_file = None if is_named else model_files.fetch(storage, str(config.weights))
    held = file or weights_file
    digest = model_files.sha256(held) if held else None
    if digest is not None:
        model_files.check(str(config.model if file else config.weights), digest, config.sha256)
    content = f"{digest}:{config.weights}" if file else f"{config.model}:{digest or config.weights}"
    return Identity(content, _classes(storage, config, file), file, weights_file, digest)


def _classes(storage: Storage, config: ModelConfig, file: Path | None) -> tuple[str, ...] | None:
    """Return class names from the job, or from the card inside the .keras file."""
    if isinstance(config.classes, list):
        return tuple(config.classes)
    if config.classes is not None:
        return _read_class_file(storage, config.classes)
    card = read_card(file) if file else None
    return card.classes if card else None


def _read_class_file(storage: Storage, uri: str) -> tuple[str, ...]:
    try:
        text = storage.read_bytes(uri, MAX_CLASS_FILE_BYTES).decode("utf-8")
    except (StoreError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"class file {uri} cannot be read: {error}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ModelError(f"class file {uri} is empty; write one class name a line")
    return names


def requests_for(job: JobConfig, identities: Sequence[Identity], engine: str) -> list[BuildRequest]:
    """Return what has to be built for a job."""
    return [
        BuildRequest(config, identity, engine, job.run.precision, job.run.batch_size)
        for config, identity in zip(job.models, identities, strict=True)
    ]


def program_uri(sink_uri: str, request: BuildRequest) -> str:
    """Return where the program is kept."""
    return store.join(sink_uri, "_cvbatch", "programs", f"{request.key}.zip")
