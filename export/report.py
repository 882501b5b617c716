"""What an export or a rewrite says about its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..contract import Record
from ..fused import told


@dataclass(frozen=True)
class ExportReport:
    """The result of an export or a rewrite.

    Attributes:
        path: the explainable file.
        record: what was recorded in it.
        opset: of the file.
        nodes_added: how many nodes the explanation takes.
        source_bytes, bytes: sizes of the source (0 for a PyTorch module) and of the file, each with the
            weights that lie beside it.
        tails: by name, the sizes of the files that hold what follows a layer alone, likewise.
        copied_bytes: constants that the explanation added to the file; no weight is stored twice.
        output_error: the largest difference between the outputs of source and file, over the largest
            entry; None if not verified.
        gradient_error: the same between the file's gradients and ``torch.autograd``; None if the source
            is an ONNX file or nothing was verified.
        map_error: the largest difference between a fused map and the host's, over its peak; None if nothing
            is fused or was verified.
        notes: sentences that the user should read.
        seconds: what it took.
    """

    path: Path
    record: Record
    opset: int
    nodes_added: int
    source_bytes: int
    bytes: int
    tails: Mapping[str, int] = field(default_factory=dict)
    copied_bytes: int = 0
    output_error: float | None = None
    gradient_error: float | None = None
    map_error: float | None = None
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0

    def __str__(self) -> str:
        layers = ", ".join(layer.name for layer in self.record.layers)
        lines = [f"{self.path}: explains {self.record.score.output!r} at {layers}"]
        if self.source_bytes:
            growth = 100 * (self.bytes / self.source_bytes - 1)
            size = f"{self.bytes:,} bytes ({growth:+.2f} %)"
        else:
            size = f"{self.bytes:,} bytes"
        for fused in self.record.fused:
            lines.append(f"  computes {fused.output}: {told(fused)}")
        if self.record.maps_only:
            lines.append("  gives these maps alone: the layers' tensors are no outputs")
        lines.append(f"  {size}, opset {self.opset}, {self.nodes_added} nodes added")
        for tail in self.record.tails:
            lines.append(f"  {tail.file}: {self.tails[tail.file]:,} bytes, what follows {tail.layer}")
        if self.output_error is not None:
            checked = f"  verified: outputs within {self.output_error:.1e}"
            if self.gradient_error is not None:
                checked += f", gradients within {self.gradient_error:.1e} of torch.autograd"
            if self.map_error is not None:
                checked += f", maps within {self.map_error:.1e} of the host's"
            lines.append(checked)
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join(lines)
