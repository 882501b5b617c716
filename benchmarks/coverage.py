"""Which architectures can be explained, and how close their gradients are to torch.autograd's.

    python benchmarks/coverage.py            # sweep; goes on where it was
    python benchmarks/coverage.py NAME ...   # these, anew

The smallest network of every module of timm (random weights), and of Hugging Face families, is exported by
torch, rewritten from the file alone at the automatic layer and at one in the middle of the list, and run on a
batch of two. The reference is torch.autograd through the program that torch exported, whose values have the
names of the file's; where torch's older exporter made the file, a forward hook. "Unsteady" are
gradients (or outputs, where a network picks its best queries) on which torch's own float32 and float64 part
as much, by units on a kink.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcam.errors import ExportError, OnnxcamError
from onnxcam.export import Candidate, list_layers, rewrite_onnx
from onnxcam.export.torch_capture import Target, capturing
from onnxcam.export.torch_exporters import export_graph
from onnxcam.export.torch_verify import watched
from onnxcam.export.verify import relative_error, run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from architectures import HUGGING_FACE, SMALLER, TIMM, build_any  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
SECONDS, BYTES = 300, 10 * 2**30  #: one network may take
EQUAL = 0.9999  #: cosine
OUTPUTS = 1e-3  #: of the largest entry: what export_torch takes for the same outputs
GOOD = ("equal", "unsteady")
_FUSIONS = "without ONNX Runtime's fusions"


def main() -> int:
    """Run the sweep; 1 if a gradient differs. `python tests/test_readme.py --write` makes it a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, help="that one network may take (default: %(default)s)"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.names[0])
    results = kept()
    for name in arguments.names or [*TIMM, *(f"hf:{n}" for n in HUGGING_FACE)]:
        if name in results["networks"] and not arguments.names:
            continue
        found = apart(name, arguments.seconds)
        results = kept()  # another sweep may have written
        if name in SMALLER:
            found["built"] = ", ".join(f"{k}={v}" for k, v in SMALLER[name].items())
        results["networks"][name] = found
        results["date"] = str(date.today())
        results["versions"] = results.get("versions", {}) | versions()
        RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")
        for row in found["rows"] or [
            {"layer": "", "layout": "", "kind": found["kind"], "text": found["text"]}
        ]:
            print(
                f"{name:40}{row['layer'][-42:]:44}{row['layout']:11}{row['kind']:12}{row['text']}", flush=True
            )
    kinds = Counter(r["kind"] for f in results["networks"].values() for r in f["rows"])
    print(", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    return int(kinds["different"] > 0)


def kept() -> dict[str, Any]:
    """The results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}


def apart(name: str, seconds: int) -> dict[str, Any]:
    """One network in a process of its own: a crash or a hang costs one line."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--one", name]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        last = ended.stdout.strip().splitlines()[-1:] or [""]
        found = json.loads(last[0]) if last[0].startswith("{") else None
        said = ended.stderr.strip().splitlines()[-1:] or [""]
        why = f"the process ended with status {ended.returncode}: {said[0]}"
    except subprocess.TimeoutExpired:
        found, why = None, f"not done after {seconds} s"
    found = found or {"rows": [], "kind": "not exported", "text": why}
    return {**found, "seconds": round(time.monotonic() - started)}


def one(name: str) -> int:
    """Print what becomes of one network, as JSON."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    print(json.dumps(explained(name)))
    return 0


def explained(name: str) -> dict[str, Any]:
    """Its rows: the automatic layer, and one in the middle."""
    import torch

    try:
        model, images = build_any(name)
    except Exception as e:
        return {"rows": [], "kind": "not built", "text": first_line(e)}
    for weight in model.parameters():
        if not weight.any():  # a branch that starts switched off has no gradient to compare
            torch.nn.init.normal_(weight, std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "model.onnx")
        try:
            made = export_graph(model, (images,), {}, True, False, 18)
        except ExportError as e:
            return {"rows": [], "kind": "not exported", "text": str(e)}
        ir.save(made.model, source)
        exported, way = made.program, made.way
        try:
            listed = list_layers(source)
        except OnnxcamError as e:
            return {"rows": [], "kind": "refused", "text": first_line(e), "way": way}
        if not listed:
            return {"rows": [], "kind": "refused", "text": "no tensor with a grid", "way": way}
        known = set(dict(model.named_modules()))
        if exported is not None:
            known = {n.name for n in exported.graph.nodes}
        referable = [c for c in listed[1:] if (c.tensor if exported is not None else c.name) in known]
        layers = listed[:1] + referable[len(referable) // 2 :][:1]
        rows = []
        for layer in layers:
            kind, text = judge(source, layer, exported, model, images)
            rows.append({"layer": layer.name, "layout": layer.layout.kind, "kind": kind, "text": text})
        return {"rows": rows, "way": way}


def judge(source: str, layer: Candidate, exported: Any, model: Any, images: Any) -> tuple[str, str]:
    """What became of one layer, and the figures or the error."""
    import torch

    target = f"{source}.cam.onnx"
    try:
        report = rewrite_onnx(source, target, layers=layer.tensor)
    except OnnxcamError as e:
        return "refused", first_line(e)
    record = report.record
    (image,) = [
        v.name for v in onnx.load(target, load_external_data=False).graph.input if v.name[:4] != "cam."
    ]
    feeds, note = {image: images.numpy()}, ""
    found = run(target, feeds)
    with torch.no_grad():
        theirs = model(images).numpy()
    apart = relative_error(found[record.score.output], theirs)
    if apart > OUTPUTS:  # a fusion of ONNX Runtime's may be at fault, such as that of Pad into MaxPool
        plain_found = run(target, feeds, optimized=False)
        if relative_error(plain_found[record.score.output], theirs) <= OUTPUTS:
            found, note = plain_found, f"  ({_FUSIONS}, which move outputs by {apart:.0e})"
            apart = 0.0
    classes = found[record.score.output].reshape(len(images), -1).argmax(axis=1)
    tensors = record.score.tensor, record.layers[0].tensor
    with torch.no_grad():
        if apart > OUTPUTS:
            own = relative_error(theirs, copy.deepcopy(model).double()(images.double()).numpy())
            said = f"- ONNX Runtime's outputs differ from torch's by {apart:.1e} of the largest"
            return ("unsteady" if own > OUTPUTS else "other outputs"), f"{said}, torch's own by {own:.1e}"

    def of_torch(exact: bool) -> np.ndarray[Any, Any] | None:
        x = images.double() if exact else images
        if exported is not None:
            program = exported.module(check_guards=False)
            try:
                program = copy.deepcopy(program).double() if exact else program
                return by_autograd(program, x, *tensors, classes)
            except (RuntimeError, NotImplementedError):
                pass  # torch's program holds an operator without a derivative
        return by_hook(copy.deepcopy(model).double() if exact else model, x, layer.name, classes)

    reference = of_torch(False)
    if reference is None:
        return "no reference", "the tensor is not in torch's program"
    ours = found[record.layers[0].gradients].astype(np.float64)
    if ours.shape != reference.shape:
        return "no reference", f"torch's tensor has another shape, {reference.shape}"
    within = float((np.abs(ours - reference) <= 1e-4 * np.abs(reference).max()).mean())
    figures = f"{cosine(ours, reference):10.7f} {100 * within:8.2f} %{note}"
    if cosine(ours, reference) > EQUAL:
        return "equal", figures
    exact = of_torch(True)
    if exact is None:
        return "different", figures
    own = f"  (against float64: torch {cosine(reference, exact):.4f}, ours {cosine(ours, exact):.4f})"
    closer = 1 - cosine(ours, exact) <= 2 * (1 - cosine(reference, exact))
    return "unsteady" if closer else "different", figures + own


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Of two gradients; 1 if both are zero."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / lengths if lengths else float(not (a.any() or b.any()))


def by_autograd(
    program: Any, images: Any, score: str, layer: str, classes: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any] | None:
    """d score[classes] / d layer, through torch's program; None if it does not have these values."""
    import torch

    kept = watched(program, [images.clone().requires_grad_()], [score, layer])
    if len({score, layer} & set(kept)) < len({score, layer}):
        return None
    picked = kept[score].flatten(1)[torch.arange(len(classes)), torch.as_tensor(classes)].sum()
    (gradient,) = torch.autograd.grad(picked, kept[layer])
    return gradient.numpy().astype(np.float64)


def by_hook(
    model: Any, images: Any, layer: str, classes: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any] | None:
    """The same by a hook on a module; None if the layer is none."""
    import torch

    kept: list[torch.Tensor] = []
    if layer not in dict(model.named_modules()):
        return None

    def finish(output: Any, found: list[torch.Tensor]) -> Any:
        kept[:] = found
        return output

    with capturing(model, [Target(layer, layer)], finish):
        scores = model(images)
    picked = scores.flatten(1)[torch.arange(len(classes)), torch.as_tensor(classes)].sum()
    (gradient,) = torch.autograd.grad(picked, kept)
    return gradient.numpy().astype(np.float64)


def versions() -> dict[str, str]:
    """Of what the sweep ran with."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "timm", "transformers", "onnxruntime", "onnx")}


def table(results: dict[str, Any]) -> str:
    """The README's: totals, what cannot be explained and why, and everything folded."""
    networks = results["networks"]
    exported = {n: f for n, f in networks.items() if f["rows"] or f["kind"] == "refused"}
    auto = [f["rows"][0] for f in exported.values() if f["rows"]]
    middle = [f["rows"][1] for f in exported.values() if len(f["rows"]) > 1]
    good = {n for n, f in exported.items() if f["rows"] and f["rows"][0]["kind"] in GOOD}
    unsteady = sum(r["kind"] == "unsteady" for r in (*auto, *middle))
    said = ", ".join(f"{name} {v}" for name, v in sorted(results["versions"].items()))
    fine = sum(r["kind"] in GOOD for r in middle)

    def called(name: str) -> str:
        built = networks[name].get("built")
        return f"`{name}`" + (f" ({built})" if built else "")

    lines = [
        f"{len(networks)} networks, {len(exported)} of which their exporter takes: {len(good)} are explained "
        f"at their automatic layer with the gradient of torch.autograd, and {fine} of {len(middle)} at a "
        f"middle one ({unsteady} of all these where torch's own float32 and float64 part).",
        f"({results['date']}; {said}; `python benchmarks/coverage.py`)",
        "",
        "| not explained, or not as it is | why |",
        "| --- | --- |",
    ]
    for name, f in sorted(networks.items()):
        for r in f["rows"]:
            if r["kind"] in GOOD and _FUSIONS not in r["text"]:
                continue
            lines.append(f"| {called(name)} at `{r['layer']}` | {r['kind']}: {plain(r['text'])} |")
        if not f["rows"]:
            lines.append(f"| {called(name)} | {f['kind']}: {plain(f['text'])} |")
    lines += [
        "",
        "<details><summary>By network</summary>",
        "",
        "| network | layer | layout | gradient | cosine |",
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, f in sorted(networks.items()):
        for r in f["rows"]:
            figure = r["text"].split()[0] if r["kind"] in GOOD else ""
            lines.append(f"| {called(name)} | `{r['layer']}` | {r['layout']} | {r['kind']} | {figure} |")
    return "\n".join([*lines, "", "</details>"])


def plain(text: str) -> str:
    """An error as a table takes it."""
    return " ".join(text.replace("|", "/").split())[:160]


def first_line(e: BaseException) -> str:
    """An error's beginning: enough to see what it is."""
    lines: Sequence[str] = [line.strip() for line in str(e).splitlines() if line.strip()]
    return f"{type(e).__name__}: {' '.join(lines[:2])[:200]}"


if __name__ == "__main__":
    sys.exit(main())
