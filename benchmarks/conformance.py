"""Which operators of the ONNX standard have a right gradient, by ONNX's own node tests.

    python benchmarks/conformance.py [--write] [OPERATOR ...]

Every node test with float inputs and outputs is differentiated with respect to each of them and compared with
finite differences: see tests/conformance/judge.py. Prints each operator's outcome and the README's table;
--write puts the table there.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.conformance.node_tests import node_tests
from tests.conformance.table import WRONG, describe, outcomes, render, verdict, write


def main() -> int:
    """Print the outcomes; 1 if a gradient is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help="all if none is named")
    parser.add_argument("--write", action="store_true", help="write the README's table (all operators)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    known = node_tests()
    found = {}
    for operator in arguments.operators or known:
        found[operator] = outcomes(operator)
        print(describe(operator, found[operator]), flush=True)
    table = render(found, datetime.datetime.now(tz=datetime.UTC).date())
    print(f"\n{table}\n\n{time.perf_counter() - started:.0f} s")
    if arguments.write and not arguments.operators:
        write(table)
    return int(any(verdict(operator, those) == WRONG for operator, those in found.items()))


if __name__ == "__main__":
    sys.exit(main())
