"""How far the heatmaps of quantised files are from their originals', over the photos in ../shared/data.

    python benchmarks/quantized.py [MODEL ...]

Each real classifier is quantised by ONNX Runtime (static in both formats, and dynamic; the photos calibrate),
mobilenet_v2 also comes quantised by its authors. Prints a table: the median and the least Pearson correlation
over the photos, at the automatic layer and at a middle one, for the class that the original sees. The rows
*noise* compare each original with itself on photos with noise of four grey levels: how firm its maps are.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
from pathlib import Path

import onnx
import onnx_ir
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.quantized_files import (
    FORMATS,
    METHODS,
    MIDDLE,
    Agreement,
    agreement,
    agreement_under_noise,
    photos,
    quantized_by_its_authors,
)


def _print(name: str, found: Agreement) -> None:
    for layer, correlations in found.items():
        cells = [f"{statistics.median(c):.3f} ({min(c):.2f})" for c in correlations.values()]
        print(f"| {name} | {layer} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(MIDDLE))
    arguments = parser.parse_args()
    versions = (
        f"ONNX Runtime {onnxruntime.__version__}, onnx {onnx.__version__}, onnx-ir {onnx_ir.__version__}"
    )
    print(f"{datetime.datetime.now(tz=datetime.UTC).date()}, {versions}, {len(photos())} photos\n")
    print(f"| file | layer | {' | '.join(METHODS)} |\n| --- | --- |{' --- |' * len(METHODS)}")
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            _print(f"{model}, noise", agreement_under_noise(model, Path(folder)))
            for form in [*FORMATS, *(["authors"] if quantized_by_its_authors(model) else [])]:
                _print(f"{model}, {form}", agreement(model, form, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
