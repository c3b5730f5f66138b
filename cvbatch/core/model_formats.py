"""Formats of models: what the `model` of a job file names, recognised by its suffix or scheme.

The name alone decides, because a job file is checked before the storage is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

FormatKey = Literal["keras", "h5", "onnx", "tflite", "folder", "hub", "refused", "zoo"]
HUB_SCHEME = "keras_hub://"
PRESET_FILE = "task.json"  # of a KerasHub preset of a task


@dataclass(frozen=True)
class ModelFormat:
    """One format of models.

    Attributes:
        key: of the format, for the tables of other layers.
        description: a noun phrase for messages, such as "a .keras file".
        patterns: suffixes, or schemes that end in "://", in lower case.
        remedy: for a format that is refused: what to do instead. NAME stands for the file's stem,
            HANDLE for what follows the scheme.
    """

    key: FormatKey
    description: str
    patterns: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def is_file(self) -> bool:
        """Return whether the model is one file of the user."""
        return self.key in ("keras", "h5", "onnx", "tflite")

    @property
    def is_folder(self) -> bool:
        """Return whether the model is a folder of files."""
        return self.key in ("folder", "hub")

    @property
    def has_own_runtime(self) -> bool:
        """Return whether the network is no Keras network; its runtime computes on CPUs."""
        return self.key in ("onnx", "tflite")

    def matches(self, model: str) -> bool:
        """Return whether a model string has the suffix or scheme of the format."""
        name = model.lower() if self.remedy else model  # Keras requires .keras in lower case
        schemes = tuple(pattern for pattern in self.patterns if pattern.endswith("://"))
        suffixes = tuple(pattern for pattern in self.patterns if not pattern.endswith("://"))
        return name.startswith(schemes) or name.endswith(suffixes)


_TO_ONNX = (
    "export it to ONNX in the program that trains it, torch.onnx.export(model.eval(), (images,), "
    "'NAME.onnx'), or for Ultralytics with `yolo export model=NAME.pt format=onnx`, and set model "
    "to the .onnx file"
)
_ZOO = ModelFormat("zoo", "a built-in network")
_FOLDER = ModelFormat("folder", "a folder")
# The first row that matches decides.
FORMATS = (
    ModelFormat(
        "refused", "a weights file without a network", (".weights.h5",),
        "set model to the name of the network and weights to this file, or save the whole model "
        "with model.save('NAME.keras')",
    ),
    ModelFormat("keras", "a .keras file", (".keras",)),
    ModelFormat("h5", "a .h5 file", (".h5", ".hdf5")),
    ModelFormat("onnx", "an ONNX file", (".onnx",)),
    ModelFormat("tflite", "a LiteRT file", (".tflite",)),
    ModelFormat("hub", "a KerasHub preset", (HUB_SCHEME,)),
    ModelFormat(
        "refused", "a PyTorch file",
        (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".torchscript", ".pt2", ".pth.tar"),
        _TO_ONNX,
    ),
    ModelFormat(
        "refused", "a model of the Hugging Face Hub", ("hf://",),
        "cvbatch downloads no models: run `hf download HANDLE --local-dir NAME` and set model "
        "to the folder if it is a KerasHub preset; export others with PyTorch and transformers, "
        "torch.onnx.export(AutoModelForImageClassification.from_pretrained('HANDLE').eval(), "
        "(images,), 'NAME.onnx'), and set model to the .onnx file",
    ),
    ModelFormat(
        "refused", "a model of Kaggle", ("kaggle://",),
        "cvbatch downloads no models: run `python -c \"import kagglehub; "
        "print(kagglehub.model_download('HANDLE'))\"` and set model to the folder that it prints",
    ),
    ModelFormat(
        "refused", "one file of a SavedModel", ("saved_model.pb",), "set model to its folder"
    ),
    ModelFormat(
        "refused", "a frozen TensorFlow graph", (".pb",),
        "convert it with `python -m tf2onnx.convert --graphdef NAME.pb --inputs INPUT:0 --outputs "
        "OUTPUT:0 --output NAME.onnx` and set model to NAME.onnx",
    ),
    ModelFormat(
        "refused", "a pickle, which could run any code", (".pkl", ".pickle", ".joblib"), _TO_ONNX
    ),
    ModelFormat(
        "refused", "a model for one device or library",
        (".mlmodel", ".mlpackage", ".engine", ".trt", ".plan", ".xml", ".caffemodel", ".params"),
        "export the original network to ONNX and set model to the .onnx file",
    ),
    ModelFormat(
        "refused", "an archive", (".zip", ".tar", ".gz", ".tgz"),
        "unpack it and set model to the model file or folder in it",
    ),
    ModelFormat(
        "refused", "a network without weights", (".json", ".yaml", ".yml"),
        "load it with its weights in Keras and save both with model.save('NAME.keras')",
    ),
)  # fmt: skip


def format_of(model: str) -> ModelFormat:
    """Return the format of the model that a job file names.

    Args:
        model: a name of the zoo, the path or URI of a file, of a folder (with a slash in it), or
            "keras_hub://" and the name of a preset.
    """
    other = _FOLDER if "/" in model else _ZOO
    return next((row for row in FORMATS if row.matches(model)), other)


def short_name(model: str) -> str:
    """Return the name of a model in results: the zoo's, or that of its file or folder."""
    path = PurePosixPath(model)
    return path.stem if format_of(model).is_file else path.name


def refusal(model: str) -> str:
    """Return why a model of this format does not run and what to do, in one sentence; or ""."""
    model_format = format_of(model)
    if not model_format.remedy:
        return ""
    name = PurePosixPath(model).stem.removesuffix(".weights")
    remedy = model_format.remedy.replace("NAME", name).replace("HANDLE", model.split("://")[-1])
    return f"model {model!r} is {model_format.description}: {remedy}"


def own_weights_error(key: str, model: str) -> str:
    """Return the error for a key of built-in networks that is set for a model of the user."""
    return (
        f"{key} for {model!r}: {format_of(model).description} contains the network and its "
        f"weights; remove {key}"
    )


def not_keras_error(model: str) -> str:
    """Return the error for a command that needs the layers of a network; "" for Keras networks."""
    if not format_of(model).has_own_runtime:
        return ""
    return (
        f"model {model!r}: {format_of(model).description} has no Keras layers, so that it can only "
        "predict; convert the network to Keras and set model to its .keras file"
    )
