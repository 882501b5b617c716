"""What one call asks of an open file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .contract import CHOSEN_BOX, CHOSEN_REGION, CLASS, EMBEDDING, PREFIX, SCORE, Fused, Layer, Record
from .methods import Method
from .perturbation import Passes
from .session import Session, TensorInfo
from .smoothing import Smoothing
from .tail import Tail
from .targets import Targets

TOLD = (SCORE, CLASS, CHOSEN_BOX, CHOSEN_REGION, EMBEDDING)  #: the outputs that say what was explained


@dataclass(frozen=True)
class File:
    """An open file, and how its inputs are.

    Attributes:
        session: open.
        image: the input that takes the image.
        channels: the axis of that input that counts channels.
        max_batch: rows in one run.
        tail: opens what follows a layer.
    """

    session: Session
    image: TensorInfo
    channels: int
    max_batch: int
    tail: Callable[[str], Tail]

    @property
    def record(self) -> Record:
        """The file's."""
        return self.session.record

    @functools.cached_property
    def own_outputs(self) -> tuple[str, ...]:
        """The model's, without ours."""
        return tuple(o.name for o in self.session.outputs if not o.name.startswith(PREFIX))

    @functools.cached_property
    def told(self) -> tuple[str, ...]:
        """The outputs that say what was explained."""
        names = {o.name for o in self.session.outputs}
        return tuple(name for name in TOLD if name in names)


@dataclass(frozen=True)
class Request:
    """What one call asks for.

    Attributes:
        method: which.
        options: of the method, {name: value}.
        layers: of the file; empty for a method that looks at none, and for a map that the file makes.
        targets: the rows.
        smoothing: see :mod:`onnxcam.smoothing`.
        channels: of the layer, that alone take part; None: all.
        passes: counts the runs.
        fused: the map that the file itself computes; None: it is made of the layers' tensors, or of runs.
    """

    method: Method
    options: Mapping[str, Any]
    layers: tuple[Layer, ...]
    targets: Targets
    smoothing: Smoothing = field(default_factory=Smoothing)
    channels: tuple[int, ...] | None = None
    passes: Passes = field(default_factory=Passes)
    fused: Fused | None = None

    def rows_of(self, part: slice) -> Targets:
        """The rows of the images in ``part``, counted from its start."""
        index = self.targets.image_index
        return self.targets.rows((index >= part.start) & (index < part.stop), part.start)
