"""What nothing flows through, and why; a list, so that nothing is left out in silence."""

from ..registry import stop

_STEPS = "piecewise constant: its gradient is zero wherever it exists"
_INTEGERS = "its result is a whole number"
_LOGICAL = "its result is true or false"
_SHAPES = "it reads the shape, not the values"
_RANDOM = "its result is drawn at random"

for _op in ("Floor", "Ceil", "Round", "Sign"):
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
for _op in ("Range", "OneHot"):
    stop(_op, "it counts positions")

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
