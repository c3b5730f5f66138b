"""Programs of a job's models: identity, build request, compiled program and its file.

`identify` hashes the files of a model; it is cheap and runs in the driver. Models are compiled in a
child process (`ProgramBuilder`), because TensorFlow frees its memory only when its process ends.
Workers load program files, without TensorFlow if the engine is LiteRT.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cvbatch.config.base import NAMED_WEIGHTS
from cvbatch.config.model_outputs import shared_networks
from cvbatch.config.models import (
    EmbeddingConfig,
    ModelConfig,
    RegressionConfig,
)
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ModelError, StoreError
from cvbatch.core.extras import require_tensorflow, required_version
from cvbatch.core.model_formats import format_of
from cvbatch.core.types import ModelSpec
from cvbatch.core.version import __version__
from cvbatch.inference.engines import ENGINES, LOADERS, Program
from cvbatch.inference.program_types import archive_of
from cvbatch.models import model_files, onnx_files, trusted_modules
from cvbatch.models.metadata import DEMO_FILES, imagenet_classes, read_card
from cvbatch.storage import store
from cvbatch.storage.store import Storage

MAX_CLASS_FILE_BYTES = 4 << 20
IMAGENET = "imagenet"  # value of `classes`: the names that are shipped
_FILE_FORMAT = 2  # version of program files; part of the key
_RUNTIME_PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}  # by model format


@dataclass(frozen=True)
class Identity:
    """Identity of a model, for fingerprints; it does not need TensorFlow.

    Attributes:
        content: SHA-256 of the model file and its weights, or their names; versions of trusted
            modules.
        classes: class names from the job or the model card; None if neither has them.
        file: local path of the model file; None for a zoo network.
        weights_file: local path of the weights file; None if the job has none.
        sha256: of `file` or folder, or else of `weights_file`; None without files.
    """

    content: str
    classes: tuple[str, ...] | None
    file: Path | None
    weights_file: Path | None
    sha256: str | None = None

    @property
    def fingerprint(self) -> str:
        """Return the model's part of the job's fingerprint, as JSON."""
        return json.dumps([self.content, self.classes])


@dataclass(frozen=True)
class BuildRequest:
    """Everything that determines a program.

    Attributes:
        config: the model's section of the job file.
        identity: of the model.
        engine: a key of ENGINES.
        precision: name of a Keras dtype policy.
        batch_size: images per call of the program.
        others: sections and identities of further outputs of the same network.
        memory_bytes: free memory of the machine that builds it; None: unknown. Not part of the key.
    """

    config: ModelConfig
    identity: Identity
    engine: str
    precision: str
    batch_size: int
    others: tuple[tuple[ModelConfig, Identity], ...] = ()
    memory_bytes: int | None = None

    @property
    def sections(self) -> list[BuildRequest]:
        """Return a request for each section of the job that the program computes."""
        pairs = ((self.config, self.identity), *self.others)
        return [
            replace(self, config=config, identity=identity, others=()) for config, identity in pairs
        ]

    @property
    def key(self) -> str:
        """Return a hash of everything that determines the program, 32 hexadecimal digits.

        Raises:
            ModelError: TensorFlow is not installed.
        """
        require_tensorflow()
        content: dict[str, Any] = {
            "config": self.config.model_dump(mode="json", exclude={"sha256"})
            | self.config.revision,
            "identity": self.identity.fingerprint,
            "engine": self.engine,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "versions": [version("keras"), version("tensorflow"), __version__, _FILE_FORMAT],
        }
        model_format = format_of(self.config.model)
        if model_format.is_folder:
            content["versions"] += _hub_version()
        if self.others:
            content["others"] = [request.key for request in self.sections[1:]]
        if package := _RUNTIME_PACKAGES.get(model_format.key):
            content["runtime"] = f"{package} {required_version(package, 'onnx')}"
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class BuiltOutput:
    """What a program computes for one section of the job; names as in `BuiltProgram`.

    Attributes:
        spec: of the section.
        activation: that the graph applies to the scores.
        activation_reason: why.
    """

    spec: ModelSpec
    activation: str
    activation_reason: str


@dataclass(frozen=True)
class BuiltProgram:
    """A compiled model with everything that a worker needs. Field names are part of its file.

    Attributes:
        spec: name, classes, input size and tiling of the model.
        engine: engine that runs it; "tensorflow" if LiteRT lacks an operation.
        names: of the outputs, in the order of the payload.
        batch_size: images per call.
        bytes_per_image: lower bound of the memory for pixels and feature maps of one image.
        largest_layer: path of the layer that needs them; "" if unknown.
        note: messages for the user, one per line, reported once; "" if there are none.
        payload: the program, in the format of its engine.
        parameters: number of weights; None if the network is not a graph of layers.
        multiply_adds: for one image; None likewise.
        activation: applied to the scores of the network: softmax, sigmoid or none.
        activation_reason: why, in one sentence for the log.
        others: what it computes for further outputs of the same network.
    """

    spec: ModelSpec
    engine: str
    names: tuple[str, ...]
    batch_size: int
    bytes_per_image: int
    note: str
    payload: bytes
    parameters: int | None = None
    multiply_adds: int | None = None
    activation: str = ""
    activation_reason: str = ""
    others: tuple[BuiltOutput, ...] = ()
    largest_layer: str = ""

    @property
    def outputs(self) -> tuple[BuiltOutput, ...]:
        """Return what the program computes for each section of its request."""
        first = BuiltOutput(self.spec, self.activation, self.activation_reason)
        return (first, *self.others)

    @property
    def prefixes(self) -> list[str]:
        """Return how the names of the outputs of each section begin."""
        return output_prefixes(len(self.outputs))

    @property
    def notes(self) -> list[str]:
        """Return the messages for the user."""
        reasons = [output.activation_reason for output in self.outputs]
        return [line for line in (*reasons, *self.note.splitlines()) if line]

    @property
    def weight_bytes(self) -> int:
        """Return the memory of the loaded program without batches: the size of its payload."""
        return len(self.payload)

    def to_bytes(self) -> bytes:
        """Return the program file: an uncompressed zip of `program.json` and `payload`."""
        fields = {key: value for key, value in asdict(self).items() if key != "payload"}
        return archive_of({"program.json": json.dumps(fields), "payload": self.payload})

    @staticmethod
    def from_bytes(data: bytes) -> BuiltProgram:
        """Return the program of a program file.

        Raises:
            ModelError: the file is damaged.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                fields = json.loads(archive.read("program.json"))
                payload = archive.read("payload")
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ModelError(
                f"a program file under _cvbatch/programs is damaged ({error}); delete it"
            ) from None
        spec = _spec_of(fields.pop("spec"))
        others = tuple(
            BuiltOutput(**{**output, "spec": _spec_of(output["spec"])})
            for output in fields.pop("others", ())
        )
        names = tuple(fields.pop("names"))
        return BuiltProgram(spec=spec, names=names, payload=payload, others=others, **fields)

    def load(self, threads: int) -> Program:
        """Load the program into this process; threads: CPU threads that one call may use."""
        return LOADERS[self.engine](self.payload, self.names, threads)


def _spec_of(fields: dict[str, Any]) -> ModelSpec:
    return ModelSpec(**{**fields, "classes": tuple(fields["classes"])})


def output_prefixes(num_sections: int) -> list[str]:
    """Return how the names of a program's outputs begin, for each section that it computes."""
    return [""] if num_sections == 1 else [f"{number}_" for number in range(num_sections)]


def outputs_by_section(
    models: Sequence[ModelConfig], programs: Sequence[BuiltProgram]
) -> list[tuple[BuiltProgram, BuiltOutput]]:
    """Return for each section of a job its program, and what that computes for the section."""
    found = {
        position: (program, output)
        for positions, program in zip(shared_networks(models), programs, strict=True)
        for position, output in zip(positions, program.outputs, strict=True)
    }
    return [found[position] for position in range(len(models))]


def _hub_version() -> list[str]:
    """Return the version of KerasHub, which builds the networks of presets; [] without it."""
    try:
        return [version("keras-hub")]
    except PackageNotFoundError:
        return []


def identify(storage: Storage, config: ModelConfig) -> Identity:
    """Fetch and hash the files of a model, and read its class names.

    Raises:
        ModelError: a file cannot be read or its SHA-256 is not the one in the job file, or the
            class file is not UTF-8 text with one name per line.
    """
    model_format, weights = format_of(config.model), config.weights
    file = DEMO_FILES.get(config.model) if weights == "demo" else None
    if model_format.is_file:
        file = model_files.fetch(storage, config.model)
    is_named = weights is None or weights in NAMED_WEIGHTS
    weights_file = None if is_named else model_files.fetch(storage, str(weights))
    hashed_file = file or weights_file
    digest = model_files.sha256(hashed_file) if hashed_file else None
    if model_format.is_folder:
        digest = model_files.model_sha256(storage, config.model)
    if digest is not None:
        is_own = file or model_format.is_folder
        model_files.check(str(config.model if is_own else weights), digest, config.sha256)
        content = f"{digest}:{weights}" if is_own else f"{config.model}:{digest}"
    else:
        content = f"{config.model}:{weights}"
    if file and model_format.key == "onnx":
        return _identify_onnx(storage, config, file, str(digest))
    if config.trust:
        content = f"{content}:{json.dumps(trusted_modules.versions(config.trust))}"
    return Identity(content, _classes(storage, config, file), file, weights_file, digest)


def _identify_onnx(storage: Storage, config: ModelConfig, file: Path, digest: str) -> Identity:
    """Return the identity of an ONNX file and its data files; its metadata may have class names."""
    model = onnx_files.read(file, config.model)
    data = {
        name: model_files.sha256(
            model_files.fetch(storage, model_files.sibling(config.model, name))
        )
        for name in onnx_files.data_files(model, config.model)
    }
    classes = _classes(storage, config, None) or onnx_files.class_names(model)
    return Identity(onnx_files.content_digest(digest, data), classes, file, None, digest)


def _classes(storage: Storage, config: ModelConfig, file: Path | None) -> tuple[str, ...] | None:
    """Return class names from the job, or from the model card inside the .keras file.

    Of a regression they are the names of its values; an embedding has none.
    """
    if isinstance(config, EmbeddingConfig | RegressionConfig):
        names = getattr(config, "names", None)
        return names and tuple(names)
    if isinstance(config.classes, list):
        return tuple(config.classes)
    if config.classes == IMAGENET:
        return imagenet_classes()
    if config.classes is not None:
        return _read_class_file(storage, config.classes)
    card = read_card(file) if file and file.name.endswith(".keras") else None
    return card.classes if card else None


def _read_class_file(storage: Storage, uri: str) -> tuple[str, ...]:
    try:
        text = storage.read_bytes(uri, MAX_CLASS_FILE_BYTES).decode("utf-8")
    except (StoreError, UnicodeDecodeError, ValueError) as error:
        reason = store.missing_path(uri) or error
        raise ModelError(f"class file {uri} cannot be read: {reason}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ModelError(f"class file {uri} is empty; write one class name per line")
    return names


def worker_packages(
    models: Sequence[ModelConfig], programs: Sequence[BuiltProgram]
) -> tuple[str, ...]:
    """Return the packages of the engines and runtimes that load the programs of a job."""
    keys = {format_of(config.model).key for config in models}
    runtimes = (name for key, name in _RUNTIME_PACKAGES.items() if key in keys)
    engines = {program.engine for program in programs} & ENGINES.keys()
    return (*runtimes, *(name for key in sorted(engines) for name in ENGINES[key].packages))


def build_requests(
    job: JobConfig,
    identities: Sequence[Identity],
    engine: str,
    memory_bytes: int | None = None,
) -> list[BuildRequest]:
    """Return the build request of every program of the job, as `shared_networks` orders them."""
    sections = list(zip(job.models, identities, strict=True))
    return [
        BuildRequest(
            *sections[first],
            engine,
            job.run.precision,
            job.run.batch_size,
            tuple(sections[position] for position in others),
            memory_bytes,
        )
        for first, *others in shared_networks(job.models)
    ]


def program_uri(sink_uri: str, request: BuildRequest) -> str:
    """Return the URI of the program file in the sink."""
    return store.join(sink_uri, "_cvbatch", "programs", f"{request.key}.zip")
