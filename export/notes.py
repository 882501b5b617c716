"""What a user should know about a file that was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from ..contract import Record
from .gradients.builder import NODE_PREFIX

_WORTH_A_NOTE = 2**16  #: bytes

#: From which opset an operator had no CUDA kernel in ONNX Runtime 1.24 (kernels are matched by the
#: exact version of their operator). Later releases fill some of these gaps.
CUDA_GAPS = {
    19: "Equal Pad Resize Size",
    20: "ReduceMax ReduceMin ConstantOfShape GridSample",
    21: "Flatten Identity If Loop Scan",
    22: "ConvTranspose MaxPool GlobalAveragePool GlobalMaxPool InstanceNormalization Cos Sin Dropout Elu "
    "Selu Softplus Softsign ThresholdedRelu Round EyeLike GRU LSTM RNN",
    23: "DequantizeLinear QuantizeLinear",
    24: "Attention Cast Reshape Shape Squeeze Unsqueeze Transpose TopK",
}


def notes_on(
    graph: ir.Graph,
    record: Record,
    zero_gradient: Sequence[str],
    other_kernels: bool = False,
    bfloat16: bool = False,
) -> tuple[str, ...]:
    """Sentences about a finished graph.

    Args:
        graph: with the explanation in it.
        record: its record.
        zero_gradient: layers whose gradient was zero on the input it was verified with.
        other_kernels: whether ONNX Runtime runs other integer kernels than in the source file.
        bfloat16: whether it computes in that, and was checked as its twin.
    """
    notes = []
    if bfloat16:
        notes.append(
            "The file computes in bfloat16, for which ONNX Runtime has kernels on CUDA and hardly any on the "
            "CPU: it was checked as a copy in which each operator computes in float32 and its results are "
            "rounded to bfloat16. Open it with providers='cuda'; for the CPU, rewrite the model in float32."
        )
    if other_kernels:
        notes.append(
            "The file computes what its source does, node by node, but ONNX Runtime fuses quantised "
            "operators only where nothing else reads what lies between: some outputs differ by steps of "
            "their scale. Layers that `onnxcam layers MODEL` lists keep the kernels; int8 activations do so "
            "on every CPU with the session option session.qdqisint8allowed=1."
        )
    opset = graph.opset_imports.get("", 18)
    missing = {op for since, ops in CUDA_GAPS.items() if since <= opset for op in ops.split()}
    counts = Counter(n.op_type for n in graph if not n.domain and n.op_type in missing)
    if counts:
        listed = ", ".join(f"{op} ({n})" for op, n in sorted(counts.items()))
        notes.append(
            f"At opset {opset} ONNX Runtime up to 1.24 has no CUDA kernel for {listed}; "
            "they run on the CPU there. Opset 18 has none of these gaps (`lower=True`, `--lower`); "
            "`onnxcam doctor MODEL` shows where each node really runs."
        )
    if rounded := _quantized(graph, record):
        notes.append(
            f"{', '.join(map(repr, rounded))} {'is' if len(rounded) == 1 else 'are'} quantised in this file: "
            "what is explained are the real numbers that the quantised ones stand for."
        )
    for name in zero_gradient:
        notes.append(
            f"The gradient at {name!r} was zero everywhere on the random input it was checked with; "
            "if it stays so on real images, the layer does not move the score."
        )
    if (added := copied_bytes(graph)) > _WORTH_A_NOTE:
        notes.append(f"{added:,} bytes of constants were added for the gradient.")
    if (mirrored := mirrored_bytes(graph)) > _WORTH_A_NOTE:
        notes.append(
            f"ONNX Runtime will keep {mirrored:,} bytes of convolution weights a second time in memory, "
            "mirrored for the gradient: faster than transposed convolutions; the file holds them once."
        )
    return tuple(notes)


def _quantized(graph: ir.Graph, record: Record) -> list[str]:
    """The layers whose activations are dequantised ones."""
    makers = {v.name: node.op_type for node in graph for v in node.outputs}
    return [layer.name for layer in record.layers if makers.get(layer.activations) == "DequantizeLinear"]


def copied_bytes(graph: ir.Graph) -> int:
    """The size of the constants that the explanation added to the file."""
    return sum(
        v.const_value.nbytes
        for name, v in graph.initializers.items()
        if name.startswith(NODE_PREFIX) and v.const_value is not None
    )


def mirrored_bytes(graph: ir.Graph) -> int:
    """The size of the weights that ONNX Runtime folds into mirrored copies when it loads the file."""
    total = 0
    for node in graph:
        if node.op_type != "Conv" or not (node.name or "").startswith(NODE_PREFIX):
            continue
        weight = node.inputs[1]
        made = weight.producer() if weight is not None else None
        while made is not None and made.inputs[0] is not None:
            weight = made.inputs[0]
            made = weight.producer()
            if weight.const_value is not None:
                total += weight.const_value.nbytes
    return total
