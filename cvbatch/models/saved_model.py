"""Networks in TensorFlow's SavedModel format, through their serving signature.

A SavedModel is a program of TensorFlow operations, some of which read and write files or run
Python. Its operations are checked, and its functions for saving are removed, before it is loaded.
Source of the format: tensorflow/core/protobuf/saved_model.proto and saved_object_graph.proto.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models.file_safety import UnsafeFileError
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.weights import first_line

FILE = "saved_model.pb"
_MAX_FILE_BYTES = (2 << 30) - 1  # of a protocol buffer
_SIGNATURE = "serving_default"
_SAVING = re.compile(r"__inference__traced_(save|restore)_\d+")  # functions; loading needs neither
_STATEFUL = frozenset(  # operations with a state that are allowed
    {
        *("VarHandleOp", "ReadVariableOp", "AssignVariableOp", "VarIsInitializedOp"),
        *("AssignAddVariableOp", "AssignSubVariableOp", "ResourceGather", "Assert"),
        *("StatefulPartitionedCall", "If", "While", "Case"),
        *("RandomUniform", "RandomStandardNormal", "TruncatedNormal", "RandomUniformInt"),
        *("TensorArrayV3", "TensorArrayReadV3", "TensorArrayWriteV3", "TensorArrayGatherV3"),
        *("TensorArrayScatterV3", "TensorArraySizeV3", "TensorArrayCloseV3"),
    }
)
# Stateless operations that read files, run Python or end the process.
_DENIED = re.compile(r"File|PyFunc|Proto|Debug|Abort|Dataset|Reader|Restore|Save|Load|Checkpoint")


class SavedModelNetwork(keras.Model):  # type: ignore[misc]  # Keras is untyped
    """The serving signature of a SavedModel, as a network of one batch of images.

    Attributes:
        model_name: as the user named it.
        input_shape: (batch, height, width, channels) of its input; None where it is variable.
    """

    def __init__(self, name: str, loaded: Any, signature: Any) -> None:
        """Prepare the network.

        Args:
            name: of the model, for messages.
            loaded: the loaded SavedModel.
            signature: its concrete function.
        """
        from tensorflow.python.framework.convert_to_constants import (  # noqa: TID251
            convert_variables_to_constants_v2,
        )

        super().__init__(name="saved_model")
        frozen = convert_variables_to_constants_v2(signature)
        (image,) = frozen.inputs
        self.model_name = name
        self._graph_def = frozen.graph.as_graph_def()
        self._input_name, self._input_dtype, self._shape = image.name, image.dtype, image.shape
        self._outputs = tuple((tensor.name, tensor.shape) for tensor in frozen.outputs)
        self._output_names = tuple(sorted(signature.structured_outputs))
        self._variables_of_file = tuple(getattr(loaded, "variables", ()))
        self.built = True

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Return the shape of the input; unknown channels are RGB."""
        sides = self._shape.as_list() if self._shape.rank == 4 else [None] * 4
        return (*sides[:3], 3 if sides[3] is None else sides[3])

    @property
    def weights(self) -> list[Any]:
        """Return the variables of the SavedModel."""
        return list(self._variables_of_file)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the outputs of the signature: a tensor, or tensors by name."""
        if self._input_dtype.is_integer:
            images = tf.round(images)
        # Imported instead of called, so that the operations are part of the graph that is checked.
        tensors = tf.graph_util.import_graph_def(
            self._graph_def,
            input_map={self._input_name: tf.cast(images, self._input_dtype)},
            return_elements=[name for name, _ in self._outputs],
        )
        for tensor, (_, shape) in zip(tensors, self._outputs, strict=True):
            tensor.set_shape(shape)
        outputs = dict(zip(self._output_names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else outputs

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        """Return the shapes of the outputs for images of a shape."""
        signature = tf.TensorSpec(images.shape, tf.float32)
        traced = tf.function(self.call, autograph=False).get_concrete_function(signature)
        return tf.nest.map_structure(
            lambda tensor: keras.KerasTensor(tuple(tensor.shape), tensor.dtype.name),
            traced.structured_outputs,
        )


def check_has_layers(network: keras.Model) -> keras.Model:
    """Return the network. Raises ModelError for a SavedModel, which is a graph without layers."""
    if isinstance(network, SavedModelNetwork):
        raise ModelError(
            f"model {network.model_name} is a SavedModel, a graph without layers, which only "
            "cvbatch predict can run; train and explain need the Keras network: save it with "
            "model.save('NAME.keras')"
        )
    return network


def load_saved_model(model: str, folder: Path) -> SavedModelNetwork:
    """Load the serving signature of an untrusted SavedModel.

    Args:
        model: folder as the user named it, for messages.
        folder: private copy, whose saved_model.pb is rewritten.

    Raises:
        ModelError: it is damaged, contains operations that are not allowed, or its signature does
            not take one batch of images.
    """
    _remove_saving(model, folder / FILE)
    try:
        loaded = tf.saved_model.load(str(folder))
    except (ValueError, KeyError, OSError, tf.errors.OpError) as error:
        raise ModelError(
            f"{model} cannot be loaded as a SavedModel ({first_line(error)}); copy it again "
            "with its folder variables, or export it again with model.export('FOLDER')"
        ) from error
    return SavedModelNetwork(model, loaded, _signature(model, loaded))


def _signature(model: str, loaded: Any) -> Any:
    signatures = loaded.signatures
    if _SIGNATURE not in signatures:
        raise ModelError(
            f"{model} has no signature {_SIGNATURE} (it has: {', '.join(signatures) or 'none'}); "
            "export it again with model.export('FOLDER')"
        )
    signature = signatures[_SIGNATURE]
    _, inputs = signature.structured_input_signature
    is_image = [
        spec.shape.rank in (4, None) and spec.dtype != tf.string for spec in inputs.values()
    ]
    if is_image != [True]:
        shapes = ", ".join(f"{key} {spec.dtype.name} {spec.shape}" for key, spec in inputs.items())
        raise ModelError(
            f"the signature {_SIGNATURE} of {model} takes {shapes or 'nothing'}; it must take one "
            "batch of images (batch, height, width, 3 or 1) of numbers: export it again"
        )
    return signature


def _remove_saving(model: str, path: Path) -> None:
    """Check the operations of a saved_model.pb, and rewrite it without what saves and restores.

    Variables are restored by Python code of TensorFlow, from the folder itself.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: TID251
    from tensorflow.python.framework import op_def_registry  # noqa: TID251

    if path.stat().st_size > _MAX_FILE_BYTES:
        raise UnsafeFileError(f"{model} is refused: its {FILE} is larger than 2 GiB")
    try:
        content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError(
            f"{model} cannot be loaded: its {FILE} is damaged; copy it again"
        ) from error
    if len(content.meta_graphs) != 1 or not content.meta_graphs[0].HasField("object_graph_def"):
        raise ModelError(
            f"{model} is a SavedModel of TensorFlow 1; convert it with `python -m tf2onnx.convert "
            "--saved-model FOLDER --output NAME.onnx` and set model to the .onnx file"
        )
    graph = content.meta_graphs[0].graph_def
    functions = [f for f in graph.library.function if not _SAVING.fullmatch(f.signature.name)]
    names = {function.signature.name for function in functions}
    for op in sorted({node.op for function in functions for node in function.node_def}):
        definition = op_def_registry.get(op)
        if definition is None:
            is_allowed = op in names  # a call of a function
        elif definition.is_stateful:
            is_allowed = op in _STATEFUL
        else:
            is_allowed = not _DENIED.search(op)
        if not is_allowed:
            raise UnsafeFileError(
                f"{model} is refused: its graph contains the operation {op!r}, which could access "
                "files, run code or keep a state; export the network again with "
                "model.export('FOLDER'), or as a .keras or .onnx file"
            )
    del graph.library.function[:], graph.node[:]
    graph.library.function.extend(functions)
    path.write_bytes(content.SerializeToString())
