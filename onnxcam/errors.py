"""Every error onnxcam raises, by what the user can do about it.

OnnxcamError
├── ModelError              the source model cannot be made explainable
│   ├── NotOnnx             not an ONNX file, truncated, or without its external data
│   ├── UnknownLayer        no such layer; the nearest names are given
│   ├── LayerNotOnPath      the score does not depend on the layer
│   ├── NoGradientRule      operators between score and layer cannot be differentiated
│   ├── ShapeUnknown        a shape that the gradient needs is not in the file
│   ├── ScoreError          no score, several candidates, or a score of the wrong shape
│   ├── ExportError         a PyTorch model that cannot be exported or captured
│   └── VerificationError   the rewritten file does not compute what the original does
├── ExplainableFileError    the file cannot be explained by this version
│   ├── NotExplainable      it has no onnxcam record
│   ├── SchemaTooNew        the record was written by a newer onnxcam
│   ├── BadRecord           the record is damaged
│   ├── BadTail             the file of what follows a layer is missing, or another one
│   └── BadRecording         a recording is missing or damaged
├── InputError              the data given to a call
│   ├── ImageError          an image that cannot be read
│   ├── TensorError         wrong rank, channels, dtype, size, or not finite
│   ├── TargetError         a class that does not exist
│   ├── MethodError         unknown, or not applicable to this file
│   └── MetricError         unknown, or not defined for this map, score or truth
├── ProviderError           an execution provider that is missing, broken or not active
├── MissingDependency       a package that this call needs is not installed
└── OutputError             a file that cannot be written

Messages say what is wrong, where, and what to do next.
"""


class OnnxcamError(Exception):
    """Base of all errors of this package."""


class ModelError(OnnxcamError):
    """The source model cannot be made explainable."""


class NotOnnx(ModelError):
    """The bytes are not a readable ONNX model."""


class UnknownLayer(ModelError):
    """No layer of that name."""


class LayerNotOnPath(ModelError):
    """The score does not depend on the layer."""


class NoGradientRule(ModelError):
    """Operators between score and layer have no gradient."""


class ShapeUnknown(ModelError):
    """The gradient needs a shape that shape inference could not find."""


class ScoreError(ModelError):
    """The score is missing, ambiguous or not a table of classes."""


class ExportError(ModelError):
    """A PyTorch model could not be exported or its layer not captured."""


class VerificationError(ModelError):
    """The rewritten file does not compute what the original does."""


class ExplainableFileError(OnnxcamError):
    """The file cannot be explained by this version."""


class NotExplainable(ExplainableFileError):
    """An ONNX file without an onnxcam record."""


class SchemaTooNew(ExplainableFileError):
    """The record was written by a newer onnxcam."""


class BadRecord(ExplainableFileError):
    """The record is damaged or contradicts the file."""


class BadTail(ExplainableFileError):
    """The file of what follows a layer is missing, or another one."""


class BadRecording(ExplainableFileError):
    """A recording is missing, damaged or of a newer onnxcam."""


class InputError(OnnxcamError):
    """The data given to a call is unusable."""


class ImageError(InputError):
    """An image cannot be read."""


class TensorError(InputError):
    """A tensor has the wrong rank, channels, dtype or size, or is not finite."""


class TargetError(InputError):
    """A class index out of range or an unknown label."""


class MethodError(InputError):
    """An unknown method, or one that this file's layer does not allow."""


class MetricError(InputError):
    """An unknown metric, or one that is not defined for a map, a score or a truth."""


class ProviderError(OnnxcamError):
    """An execution provider is missing, broken or not active."""


class MissingDependency(OnnxcamError):
    """A package that this call needs is not installed."""


class OutputError(OnnxcamError):
    """A file cannot be written."""


def nearest(name: str, known: "list[str]", count: int = 3) -> str:
    """A sentence naming the known names closest to ``name``; empty if nothing is close."""
    import difflib

    lowered = {k.lower(): k for k in reversed(known)}
    close = [lowered[k] for k in difflib.get_close_matches(name.lower(), lowered, count, 0.4)]
    inside = [k for k in known if name and name.lower() in k.lower() and k not in close]
    best = (close + inside)[:count]
    return f" Nearest: {', '.join(repr(b) for b in best)}." if best else ""
