"""The small graphs by which the runtime makes changed copies where its session runs.

The runtime has no ``onnx`` to build them with, so they lie beside it as files::

    python -m onnxcam.export.mask_graphs

writes them anew; a test compares them with what stands here.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import onnx.shape_inference

#: x ⊙ mask + baseline ⊙ (1 - mask), the masks enlarged to the image first (see Scorer.behind).
BEHIND = """
<ir_version: 8, opset_import: ["": 18], producer_name: "onnxcam">
behind (
    float[1, A, B, D] x, float[K, 1, h, w] masks, int64[4] size, int64[4] shape, float baseline,
    bool stretched, float epsilon
) => (float[K, E, F, G] copies) <int64[3] axes = {1, 2, 3}, float zero = {0}, float one = {1}> {
    large = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(masks, , , size)
    low = ReduceMin<keepdims=1>(large, axes)
    high = ReduceMax<keepdims=1>(large, axes)
    span = Sub(high, low)
    varies = Greater(span, zero)
    wide = Add(span, epsilon)
    range = Where(varies, wide, one)
    above = Sub(large, low)
    unit = Div(above, range)
    chosen = Where(stretched, unit, large)
    weights = Reshape(chosen, shape)
    seen = Mul(x, weights)
    rest = Sub(one, weights)
    filled = Mul(rest, baseline)
    copies = Add(seen, filled)
}
"""

#: x ⊙ weights, and x where it is no grid's (see onnxcam.weighted). Of any rank: the layer's own axes.
TIMES = """
<ir_version: 8, opset_import: ["": 18], producer_name: "onnxcam">
times (float[] x, float[] weights, bool[] grid) => (float[] copies) {
    product = Mul(x, weights)
    copies = Where(grid, product, x)
}
"""

#: Entries of the first axis, some of them several times (see Tail.copies).
PICK = """
<ir_version: 8, opset_import: ["": 18], producer_name: "onnxcam">
pick (float[] x, int64[K] entries) => (float[] copies) { copies = Gather<axis=0>(x, entries) }
"""

GRAPHS = {"behind.onnx": BEHIND, "pick.onnx": PICK, "times.onnx": TIMES}


def build(text: str) -> onnx.ModelProto:
    """A graph from its text, its types checked."""
    model = onnx.parser.parse_model(text)
    # Not onnx.checker, which wants a rank of every input; ONNX Runtime does not.
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return model


def main() -> None:
    """Write the files."""
    import onnxcam

    folder = Path(onnxcam.__file__).parent
    for name, text in GRAPHS.items():
        onnx.save(build(text), folder / name)


if __name__ == "__main__":
    main()
