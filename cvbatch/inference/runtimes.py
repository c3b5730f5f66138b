"""Run model files as they are on CPUs: ONNX in onnxruntime, TFLite in LiteRT.

A runtime takes and returns real numbers in float32: half precision is converted, and quantised
inputs and outputs are converted with the scale and zero point that the file has for them. Outputs
of whole numbers, such as class ids, are int32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cvbatch.core.errors import ModelError
from cvbatch.core.extras import require


class TensorInfo(NamedTuple):
    """An input or output of a model file.

    Attributes:
        name: in the file.
        shape: sides that are not fixed are None.
        dtype: of NumPy.
        scale: real number = scale * (stored number - zero_point); 0: not quantised.
        zero_point: see `scale`.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    scale: float = 0.0
    zero_point: int = 0

    def stored(self, real: np.ndarray) -> np.ndarray:
        """Return real numbers as the file stores them; whole numbers are rounded and clipped."""
        if self.dtype.kind not in "iu":
            return np.ascontiguousarray(real, self.dtype)
        quantised = real / np.float32(self.scale) + self.zero_point if self.scale else real
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(quantised), limits.min, limits.max).astype(self.dtype)

    @property
    def real_dtype(self) -> str:
        """Return the dtype of `real`."""
        return "float32" if self.scale or self.dtype.kind == "f" else "int32"

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Return the numbers that stored ones mean."""
        numbers = stored.astype(self.real_dtype, copy=False)
        return (numbers - self.zero_point) * np.float32(self.scale) if self.scale else numbers


class Runtime(Protocol):
    """A model file that is loaded in this process.

    Attributes:
        inputs: of the network.
        outputs: of the network, by name.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: dict[str, TensorInfo]

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run the network on one batch in the layout of the file.

        Args:
            images: float32, in the shape of the only input.
            names: of the outputs to return.

        Raises:
            ModelError: the file does not accept a batch of this shape.
        """


_ONNX_DTYPES = {  # onnxruntime's type of a tensor → dtype; others are not numbers
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("uint8", "int8", "int32", "int64", "bool")},
}


class OnnxRuntime:
    """An ONNX file in onnxruntime; an implementation of `Runtime`."""

    def __init__(self, content: bytes, threads: int) -> None:
        """Load a file.

        Args:
            content: of the file, with all its weights.
            threads: CPU threads of one call.

        Raises:
            ModelError: onnxruntime is not installed, or does not accept the file.
        """
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            self.inputs = tuple(map(_onnx_info, self._session.get_inputs()))
            self.outputs = {x.name: _onnx_info(x) for x in self._session.get_outputs()}
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - its exceptions have no common class
            raise ModelError(f"onnxruntime does not load it: {_first_line(error)}") from None

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run the network on one batch; see `Runtime`."""
        info = self.inputs[0]
        try:
            results = self._session.run(list(names), {info.name: info.stored(images)})
        except Exception as error:  # noqa: BLE001 - its exceptions have no common class
            raise ModelError(
                f"onnxruntime does not run it on {images.shape}: {_first_line(error)}"
            ) from None
        return [self.outputs[name].real(x) for name, x in zip(names, results, strict=True)]


def _onnx_info(argument: Any) -> TensorInfo:
    if argument.type not in _ONNX_DTYPES:
        raise ModelError(f"its tensor {argument.name!r} is a {argument.type}, not numbers")
    shape = [side if isinstance(side, int) and side > 0 else None for side in argument.shape]
    return TensorInfo(argument.name, tuple(shape), np.dtype(_ONNX_DTYPES[argument.type]))


class TfliteRuntime:
    """A TFLite file in LiteRT; an implementation of `Runtime`."""

    def __init__(self, content: bytes, threads: int) -> None:
        """Load a file.

        Args:
            content: of the file.
            threads: CPU threads of one call.

        Raises:
            ModelError: LiteRT does not accept the file.
        """
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT does not load it: {_first_line(error)}") from None
        self.inputs = tuple(map(_tflite_info, inputs))
        self.outputs = {details["name"]: _tflite_info(details) for details in outputs}
        self._shape = tuple(inputs[0]["shape"]) if inputs else ()
        self._input = inputs[0]["index"] if inputs else -1
        self._indices = {details["name"]: details["index"] for details in outputs}

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Run the network on one batch; see `Runtime`."""
        try:
            if images.shape != self._shape:
                self._interpreter.resize_tensor_input(self._input, images.shape)
                self._interpreter.allocate_tensors()
                self._shape = images.shape
            self._interpreter.set_tensor(self._input, self.inputs[0].stored(images))
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            self._shape = ()  # the next call allocates again
            raise ModelError(
                f"LiteRT does not run it on {images.shape}: {_first_line(error)}"
            ) from None
        results = (self._interpreter.get_tensor(self._indices[name]) for name in names)
        return [self.outputs[name].real(x) for name, x in zip(names, results, strict=True)]


def _tflite_info(details: dict[str, Any]) -> TensorInfo:
    dtype = np.dtype(details["dtype"])
    if dtype.kind not in "fiub":
        raise ModelError(f"its tensor {details['name']!r} is {dtype}, not numbers")
    sides = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    shape = tuple(int(side) if side > 0 else None for side in sides)
    scale, zero_point = details["quantization"]
    return TensorInfo(details["name"], shape, dtype, float(scale), int(zero_point))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


RUNTIMES: dict[str, Callable[[bytes, int], Runtime]] = {  # key of a model format → runtime
    "onnx": OnnxRuntime,
    "tflite": TfliteRuntime,
}
