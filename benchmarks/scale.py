"""How rewriting grows with a model: nodes, seconds, and memory beside large weights.

    python benchmarks/scale.py

The chain is Conv and ReLU after each other, explained at its first layer, so that the gradient goes back
through all of it; the fan is one tensor that all branches read. The weights are one sparse file of 2.2 GB.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcam.export import rewrite_onnx

SIZES = (1_000, 10_000, 100_000)
BIG = 550_000_000  #: float32 entries: 2.2 GB


def main() -> int:
    """Print the tables."""
    if sys.argv[1:2] == ["--weights"]:
        return weights(Path(sys.argv[2]))
    print(f"{'graph':8}{'nodes':>9}{'rewritten in':>14}{'per node':>11}")
    for name, make in (("chain", chain), ("fan", fan)):
        for count in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                source = os.path.join(folder, "model.onnx")
                onnx.save(make(count), source)
                started = time.perf_counter()
                rewrite_onnx(source, os.path.join(folder, "out.cam.onnx"), "first", verify=False)
                seconds = time.perf_counter() - started
            print(f"{name:8}{count:9,}{seconds:12.2f} s{1e3 * seconds / count:8.2f} ms", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        big(path)
        command = [sys.executable, __file__, "--weights", str(path)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")
    return 0


def _model(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _weight() -> onnx.TensorProto:
    rng = np.random.default_rng(0)
    return numpy_helper.from_array((rng.standard_normal((4, 4, 1, 1)) * 0.5).astype(np.float32), "w")


_POOL = (("GlobalAveragePool", "p"), ("Flatten", "y"))


def chain(count: int) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, ..."""
    nodes, last = [helper.make_node("Conv", ["x", "w"], ["first"])], "first"
    while len(nodes) < count - len(_POOL):
        op, inputs = ("Relu", [last]) if len(nodes) % 2 else ("Conv", [last, "w"])
        last = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [last]))
    for op, name in _POOL:
        nodes.append(helper.make_node(op, [last], [name]))
        last = name
    return _model(nodes, [_weight()])


def fan(count: int) -> onnx.ModelProto:
    """One tensor, read by all; their results in one sum."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["first"])]
    names = [f"v{k}" for k in range(count - 2 - len(_POOL))]
    nodes += [helper.make_node("Relu", ["first"], [name]) for name in names]
    nodes.append(helper.make_node("Sum", names, ["s"]))
    last = "s"
    for op, name in _POOL:
        nodes.append(helper.make_node(op, [last], [name]))
        last = name
    return _model(nodes, [_weight()])


def big(path: Path) -> None:
    """A network with 2.2 GB of weights in a file of their own, which the disk holds sparsely."""
    with open(path.with_suffix(".data"), "wb") as file:
        file.truncate(4 * BIG)
    tensor = TensorProto(name="large", data_type=TensorProto.FLOAT, dims=[BIG // 1000, 1000])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", path.with_suffix(".data").name), ("offset", 0), ("length", 4 * BIG)):
        tensor.external_data.add(key=key, value=str(value))
    rows = numpy_helper.from_array(np.arange(4), "rows")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["first"]),
        helper.make_node("GlobalAveragePool", ["first"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gather", ["large", "rows"], ["few"], axis=0),
        helper.make_node("MatMul", ["f", "few"], ["wide"]),
        helper.make_node("Softmax", ["wide"], ["y"], axis=1),
    ]
    model = _model(nodes, [_weight(), tensor, rows])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1000
    model.opset_import[0].version = 13  # so that it is converted, too
    path.write_bytes(model.SerializeToString())


def weights(path: Path) -> int:
    """Rewrite the large one and print what it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    report = rewrite_onnx(path, path.with_name("out.cam.onnx"), "first", verify=False)
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    share = peak / (4 * BIG)
    print(
        f"{4 * BIG / 1e9:.1f} GB of weights: {seconds:.1f} s, {peak / 1e9:.2f} GB of memory more than before "
        f"({share:.2f} of the weights), file of {report.bytes / 1e9:.2f} GB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
