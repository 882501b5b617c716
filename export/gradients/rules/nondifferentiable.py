"""What nothing flows through, and why; a list, so that nothing is left out in silence."""

from ..registry import stop

_STEPS = "piecewise constant: its gradient is zero wherever it exists"
_INTEGERS = "its result is a whole number"
_LOGICAL = "its result is true or false"
_SHAPES = "it reads the shape, not the values"
_RANDOM = "its result is drawn at random"

for _op in ("Floor", "Ceil", "Round", "Sign", "Hardmax"):
    stop(_op, _STEPS)
for _op in ("ArgMax", "ArgMin", "NonZero", "NonMaxSuppression", "Unique", "BitShift"):
    stop(_op, _INTEGERS)
for _op in (
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "And",
    "Or",
    "Not",
    "Xor",
    "IsNaN",
    "IsInf",
):
    stop(_op, _LOGICAL)
for _op in ("Shape", "Size", "ConstantOfShape", "EyeLike"):
    stop(_op, _SHAPES)
for _op in ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"):
    stop(_op, _RANDOM)
for _op in ("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"):
    stop(_op, "it makes a table of constants")
for _op in ("Binarizer", "LabelEncoder", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"):
    stop(_op, _STEPS, domain="ai.onnx.ml")

# Inputs that say how, not what.
_HOW = "it says how to compute, not what"
stop("Where", _LOGICAL, wrt=["condition"])
stop("Clip", "the bounds are taken as constants", wrt=["min", "max"])
stop("Pad", _HOW, wrt=["pads", "constant_value", "axes"])
stop("Reshape", _HOW, wrt=["shape"])
stop("Expand", _HOW, wrt=["shape"])
stop("Tile", _HOW, wrt=["repeats"])
stop("Slice", _HOW, wrt=["starts", "ends", "axes", "steps"])
stop("Gather", _HOW, wrt=["indices"])
stop("GatherND", _HOW, wrt=["indices"])
stop("GatherElements", _HOW, wrt=["indices"])
stop("ScatterND", _HOW, wrt=["indices"])
stop("ScatterElements", _HOW, wrt=["indices"])
stop("Dropout", _HOW, wrt=["ratio", "training_mode"])
stop("Resize", _HOW, wrt=["roi", "scales", "sizes"])
stop("CumSum", _HOW, wrt=["axis"])
stop("CumProd", _HOW, wrt=["axis"])
stop("Range", "it says how many, not what", wrt=["limit"])
stop("TensorScatter", _HOW, wrt=["write_indices"])
stop("ArrayFeatureExtractor", _HOW, wrt=["Y"], domain="ai.onnx.ml")
stop("TopK", _HOW, wrt=["K"])
stop("OneHot", "it counts positions", wrt=["indices", "depth"])
stop("Compress", _LOGICAL, wrt=["condition"])
stop("ReverseSequence", _HOW, wrt=["sequence_lens"])
stop("Trilu", _HOW, wrt=["k"])
stop("MaxUnpool", _HOW, wrt=["I", "output_shape"])
stop("Col2Im", _HOW, wrt=["image_shape", "block_shape"])
stop("AffineGrid", _HOW, wrt=["size"])
stop("RoiAlign", "the regions are taken as constants", wrt=["rois", "batch_indices"])
stop("DFT", _HOW, wrt=["dft_length", "axis"])
stop("STFT", _HOW, wrt=["frame_step", "frame_length"])
