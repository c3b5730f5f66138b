"""Lower bound of the memory that LiteRT needs for the tensors of a program."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import accumulate

import numpy as np

# Operations that cannot write their result over their input.
_OUT_OF_PLACE = {
    "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED", "MAX_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
    "TRANSPOSE_CONV",
}  # fmt: skip


def live_bytes(payload: bytes) -> int:
    """Return the largest sum of the tensors that are needed at the same time, without weights.

    A tensor is needed from the operation that computes it until the last one that reads it. Nothing
    is allocated, so that a program that does not fit in memory can be measured.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # whose operations would be hidden
    interpreter = Interpreter(model_content=payload, experimental_op_resolver_type=resolver)
    operations = interpreter._get_ops_details()  # not public, but the only list of operations
    written = {details["index"]: 0 for details in interpreter.get_input_details()}
    read: dict[int, int] = defaultdict(int)
    for step, operation in enumerate(operations, 1):
        written |= dict.fromkeys(map(int, operation["outputs"]), step)
        # Between its steps a program needs only what later steps read.
        is_needed = operation["op_name"] in _OUT_OF_PLACE
        for index in map(int, operation["inputs"]):
            read[index] = max(read[index], step if is_needed else step - 1)
    read |= dict.fromkeys((x["index"] for x in interpreter.get_output_details()), len(operations))
    changes = [0] * (len(operations) + 2)
    for tensor in interpreter.get_tensor_details():
        first = written.get(tensor["index"])
        if first is not None:  # else it is a constant
            size = math.prod(map(int, tensor["shape"])) * np.dtype(tensor["dtype"]).itemsize
            changes[first] += size
            changes[max(first, read[tensor["index"]]) + 1] -= size
    return max(accumulate(changes))
