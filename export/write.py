"""Saving: checked and run before it replaces anything, so that a bad result leaves no file."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import OutputError, VerificationError
from .gradients.definitions.registry import MICROSOFT
from .gradients.registry import schema

_PROTOBUF_LIMIT = 2**31 - 2**24  #: bytes; above, weights go to a file beside the model


def _checkable(model: ir.Model, path: Path) -> str | onnx.ModelProto:
    """The saved file, for the checker; what ONNX Runtime puts into ONNX's domain moved out of it."""
    opset = model.graph.opset_imports.get("", 0)
    if all(n.domain or schema(n.op_type, "", opset) is not None for n in model.graph.all_nodes()):
        return os.fspath(path)
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        if not node.domain and schema(node.op_type, "", opset) is None:
            node.domain = MICROSOFT
    if not any(o.domain == MICROSOFT for o in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    return proto


@contextlib.contextmanager
def staged(model: ir.Model, target: str | os.PathLike[str]) -> Iterator[Path]:
    """Save a model beside its target, checked by ONNX; it takes its name when the block ends well.

    Args:
        model: what to save. Weights above 2 GB, or that were outside the source file, go to
            ``<name>.data`` beside it; to ``<name>.1.data`` if the model itself is read from the first.
        target: the file to write or replace.

    Yields:
        The path of the staged file, complete and checked.

    Raises:
        OutputError: the target cannot be written.
        VerificationError: ONNX's checker refuses the result.
    """
    path = Path(target)
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    read = {os.path.realpath(w.path) for w in weights if isinstance(w, ir.ExternalTensor)}
    data = None
    if read or sum(w.nbytes for w in weights) > _PROTOBUF_LIMIT:
        numbers = itertools.count(1)
        data = f"{path.name}.data"
        while os.path.realpath(path.with_name(data)) in read:
            data = f"{path.name}.{next(numbers)}.data"
    try:
        if path.is_dir():
            raise OSError("it is a folder")
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as e:
        raise OutputError(
            f"Cannot write {os.fspath(path)!r}: {e.strerror or e}. Choose another place with -o."
        ) from e
    try:
        draft = folder / path.name
        try:
            ir.save(model, draft, external_data=data)
        except OSError as e:
            raise OutputError(f"Cannot write {os.fspath(path)!r}: {e.strerror or e}.") from e
        try:
            onnx.checker.check_model(_checkable(model, draft))
        except onnx.checker.ValidationError as e:
            raise VerificationError(
                f"ONNX's checker refuses the rewritten model: {e}. Please report it."
            ) from e
        yield draft
        try:
            if data is not None:
                os.replace(folder / data, path.with_name(data))
            os.replace(draft, path)
        except OSError as e:
            raise OutputError(f"Cannot write {os.fspath(path)!r}: {e.strerror or e}.") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
