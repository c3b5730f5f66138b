"""Small ONNX and TFLite files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CHANNELS, CLASSES = 4, 5
FLOAT = 1  # TensorProto.FLOAT


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a convolution and a dense layer."""
    random = np.random.default_rng(seed)
    return {
        "conv": random.normal(0, 0.5, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "dense": random.normal(0, 2, (CHANNELS, CLASSES)).astype(np.float32),
        "bias": random.normal(0, 1, CLASSES).astype(np.float32),
        "maps": random.normal(0, 0.5, (CLASSES, CHANNELS, 1, 1)).astype(np.float32),
    }


def onnx_model(
    nodes: list[tuple[Any, ...]],
    input_shape: tuple[Any, ...],
    outputs: dict[str, tuple[Any, ...]],
    constants: dict[str, np.ndarray] | None = None,
    input_type: int = FLOAT,
    more_inputs: tuple[str, ...] = (),
) -> Any:
    """Return an onnx.ModelProto.

    Args:
        nodes: (operation, inputs, outputs) with names separated by blanks, and attributes.
        input_shape: of the input "image".
        outputs: shape of each output.
        constants: besides those of `weights`.
        input_type: a value of onnx.TensorProto.DataType.
        more_inputs: names of inputs besides "image".
    """
    import onnx
    from onnx import helper, numpy_helper

    made = [
        helper.make_node(op, inputs.split(), results.split(), **(rest[0] if rest else {}))
        for op, inputs, results, *rest in nodes
    ]
    used = {name for node in made for name in node.input}
    arrays = {k: v for k, v in (weights() | (constants or {})).items() if k in used}
    graph = helper.make_graph(
        made,
        "net",
        [
            helper.make_tensor_value_info(name, input_type, input_shape)
            for name in ("image", *more_inputs)
        ],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


CONV = ("Conv", "x conv", "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]})
HEAD = [
    CONV,
    ("Relu", "c", "features"),
    ("GlobalAveragePool", "features", "p"),
    ("Flatten", "p", "f"),
    ("Gemm", "f dense bias", "logits"),
]


def classifier(
    first: list[tuple[Any, ...]] | None = None,
    last: list[tuple[Any, ...]] | None = None,
    input_shape: tuple[Any, ...] = ("batch", 3, 24, 32),
    **options: Any,
) -> Any:
    """Return a classifier; `first` computes x of image, `last` computes scores of logits."""
    nodes = [
        *(first or [("Identity", "image", "x")]),
        *HEAD,
        *(last or [("Identity", "logits", "scores")]),
    ]
    return onnx_model(nodes, input_shape, {"scores": (None, CLASSES)}, **options)


def segmenter(last: list[tuple[Any, ...]] | None = None, shape: Any = (None, CLASSES, 12, 16)):
    """Return a segmenter with maps of half the size of the input; `last` computes scores of m."""
    nodes = [
        ("Identity", "image", "x"),
        CONV,
        ("Relu", "c", "features"),
        ("Conv", "features maps", "m"),
        *(last or [("Identity", "m", "scores")]),
    ]
    return onnx_model(nodes, ("batch", 3, 24, 32), {"scores": shape})


def save(model: Any, path: Path) -> str:
    """Write an ONNX model; return its path as text."""
    path.write_bytes(model.SerializeToString())
    return str(path)


def tflite(model: Any, path: Path, images: np.ndarray | None = None, dtype: str = "") -> str:
    """Convert a Keras model to a TFLite file; return its path as text.

    Args:
        model: the Keras model.
        path: of the file.
        images: (N, H, W, 3) inputs to quantise the network with; None: float32.
        dtype: of quantised inputs and outputs; "": float32, only the weights are quantised.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if images is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype:
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, dtype)
    path.write_bytes(converter.convert())
    return str(path)
