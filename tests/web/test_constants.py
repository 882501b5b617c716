"""What the page's modules repeat of Python's, because a browser cannot import it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import contract, methods
from onnxcam.fused import fusable
from onnxcam.overlay import colourize

NODE = shutil.which("node")
SOURCE = Path(__file__).parents[2] / "examples" / "web" / "src"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed (`apt-get install nodejs`)")


def exported(module: str) -> dict[str, Any]:
    """The plain values that a module exports."""
    script = f"""import * as all from {json.dumps((SOURCE / module).as_uri())};
    console.log(JSON.stringify(all, (_, v) => ArrayBuffer.isView(v) ? [...v] : v));"""
    command = [str(NODE), "--input-type=module", "--eval", script]
    values: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return values


def test_names_and_fields_are_the_contracts() -> None:
    record = exported("record.js")
    for name in ("SCHEMA", "CLASS_INDEX", "SCORE", "CLASS", "CHOSEN_BOX"):
        assert record[name] == getattr(contract, name)
    assert record["PREPROCESS"] == json.loads(json.dumps(dataclasses.asdict(contract.Preprocess())))
    hints = typing.get_type_hints(contract.Preprocess)
    choices = {n: typing.get_args(h) for n, h in hints.items() if typing.get_origin(h) is typing.Literal}
    assert {name: tuple(values) for name, values in record["CHOICES"].items()} == choices


def test_methods_that_keep_negative_evidence() -> None:
    inside = [name for name, why_not in fusable().items() if why_not is None]
    signed = [name for name in inside if not methods.get(name).rectify]
    assert exported("heatmap.js")["SIGNED"] == sorted(signed)


def test_colour_maps_are_opencvs() -> None:
    ramp = ((np.arange(256, dtype=np.float32) + 0.5) / 256)[None]
    tables = exported("colormaps.js")["COLORMAPS"]
    assert list(tables) == ["jet", "turbo", "viridis", "inferno"]
    for name, table in tables.items():
        np.testing.assert_array_equal(np.reshape(table, (256, 3)), colourize(ramp, name)[0])
