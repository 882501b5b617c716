"""How the score changes when the model sees only what the map shows: x ⊙ M.

s is the score of the image, s′ that of x ⊙ M, both probabilities: the papers' quotients have no meaning for
logits, which may be negative, and are refused.
"""

from __future__ import annotations

from ..errors import MetricError
from . import metric
from .case import Case

_GRADCAMPP = "Chattopadhay et al., Grad-CAM++, WACV 2018"


@metric("drop", better="lower", source=_GRADCAMPP, formula="max(0, s - s′) / s")
def drop(case: Case) -> float:
    """Average drop: the share of the score that is lost.

    Chattopadhay et al. 2018, there in percent.
    """
    return max(0.0, case.clean - case.shown_score()) / _positive(case, "drop")


@metric(
    "drop:torchcam",
    better="lower",
    source="torch-cam, ClassificationMetric",
    formula="max(0, s - s′) / (s + 1e-7)",
)
def drop_torchcam(case: Case) -> float:
    """The drop with torch-cam's epsilon; of a negative score it is negative, as there."""
    return max(0.0, case.clean - case.shown_score()) / (case.clean + 1e-7)


@metric("drop:pgc", better="lower", source="pytorch-grad-cam, DropInConfidence", formula="max(0, s - s′)")
def drop_pgc(case: Case) -> float:
    """The drop in the score's own units, not as a share of it."""
    return max(0.0, case.clean - case.shown_score())


@metric(
    "drop:ovx",
    better="lower",
    source="openvino_xai, ADCC",
    formula="max(0, s - s′) / s, s′ of the photo ⊙ M: hidden pixels are black",
    needs=("black",),
)
def drop_ovx(case: Case) -> float:
    """The drop where hidden pixels are black in the photo, not 0 in the model's input."""
    return max(0.0, case.clean - case.shown_score(black=True)) / _positive(case, "drop:ovx")


@metric("increase", better="higher", source=_GRADCAMPP, formula="1 if s′ > s, else 0")
def increase(case: Case) -> float:
    """Increase in confidence: whether the score is higher without what the map hides.

    Chattopadhay et al. 2018; the same in pytorch-grad-cam and torch-cam.
    """
    return float(case.shown_score() > case.clean)


@metric(
    "gain",
    better="higher",
    source="Zhang et al., Opti-CAM: Optimizing saliency maps for interpretability, CVIU 2024",
    formula="max(0, s′ - s) / (1 - s)",
)
def gain(case: Case) -> float:
    """Average gain: the share of what was missing to certainty that is won; 0 if nothing was missing.

    Zhang, Torres, Sicre, Avrithis and Ayache, "Opti-CAM", CVIU 2024.
    """
    if not 0 <= case.clean <= 1:
        raise MetricError(f"The gain is of a probability, and the score is {case.clean:.4g}. {_ASK}")
    won = max(0.0, case.shown_score() - case.clean)
    return won / (1 - case.clean) if won else 0.0


_ASK = "It is defined on probabilities: of a classifier, measure those (of='probability')."


def _positive(case: Case, name: str) -> float:
    if not case.clean > 0:
        raise MetricError(f"The metric '{name}' divides by the score, which is {case.clean:.4g}. {_ASK}")
    return case.clean
