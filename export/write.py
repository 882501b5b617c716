"""Saving: checked and run before it replaces anything, so that a bad result leaves no file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import OutputError, VerificationError

_PROTOBUF_LIMIT = 2**31 - 2**24  #: bytes; above, weights go to a file beside the model


@contextlib.contextmanager
def staged(model: ir.Model, target: str | os.PathLike[str]) -> Iterator[Path]:
    """Save a model beside its target, checked by ONNX; it takes its name when the block ends well.

    Args:
        model: what to save. Weights above 2 GB, or that were outside the source file, go to
            ``<name>.data`` beside it.
        target: the file to write or replace.

    Yields:
        The path of the staged file, complete and checked.

    Raises:
        OutputError: the target cannot be written.
        VerificationError: ONNX's checker refuses the result.
    """
    path = Path(target)
    external = any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = f"{path.name}.data" if external or size > _PROTOBUF_LIMIT else None
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
            onnx.checker.check_model(os.fspath(draft))
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
