"""How far the heatmaps of quantised files are from their originals', over the photos in ../shared/data.

    python benchmarks/quantized.py [MODEL ...]

Each real classifier is quantised by ONNX Runtime (static in both formats, and dynamic; the photos calibrate),
mobilenet_v2 also comes quantised by its authors. Prints a table: the median and the least Pearson correlation
over the photos, at the automatic layer and at a middle one, for the class that the original sees.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.quantized_files import FORMATS, METHODS, MIDDLE, agreement, photos, quantized_by_its_authors


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
            formats = [*FORMATS, *(["authors"] if quantized_by_its_authors(model) else [])]
            for form in formats:
                for layer, correlations in agreement(model, form, Path(folder)).items():
                    cells = [f"{statistics.median(c):.3f} ({np.min(c):.2f})" for c in correlations.values()]
                    print(f"| {model}, {form} | {layer} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
