"""A comparison as one HTML file that people can read: no network, no other file, on a phone and on paper.

The page is ``report.html``. Everything in it is escaped where it stands; its only script draws the tables,
and the file itself forbids the browser to load or run anything else. The same comparison always gives the
same bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from .. import extras, images
from ..contract import Preprocess
from ..errors import ImageError
from ..images import Photo
from ..overlay import colourize
from ..recording import Maker, Recording
from . import charts, decisions, pictures
from .agreement import get
from .data import VERDICTS, Comparison, Row, Statistic
from .gate import Judgement
from .photos import matched
from .pictures import Pictures
from .summary import SCORE_DIFFERENCE

PAGE = 50  #: rows of a table that are shown at once
PRINTED = 500  #: rows of a table that are printed

#: What a measure's number tells, for people.
READ: Mapping[str, str] = {
    "pearson": "Do both maps rise and fall together? 1: they do, up to brightness and contrast; "
    "0: they have nothing in common; below 0: one is hot where the other is cold.",
    "spearman": "Do both order the cells alike, from cold to hot? 1: they do; 0: the orders are unrelated.",
    "cosine": "Do both spread their evidence over the same cells? "
    "1: in the same proportions; 0: over other cells.",
    "iou20": "How much do the hottest fifths of both maps overlap? "
    "1: they are the same cells; 0: they share none.",
    "peak": "How far apart are the hottest cells, as a share of the diagonal of the part that both see? "
    "0: in the same place.",
    "js": "How different are the maps, as shares of heat that add up to 1? "
    "0: not at all; 1: they share no cell.",
    "ssim": "Do the maps have the same structure, window by window? 1: they are the same picture.",
    "emd": "How far must the heat of one map be moved to make the other, as a share of the diagonal of "
    "the part that both see? 0: it lies right.",
    SCORE_DIFFERENCE: "How much does the candidate's score of the reference's class differ? 0: not at all.",
}


@dataclass(frozen=True)
class Card:
    """A photo that is shown: its row, its place in the order, and where both sides look."""

    number: int
    row: Row
    value: float | None
    pictures: Pictures | None
    note: str


@dataclass(frozen=True)
class Column:
    """Of a table.

    Attributes:
        title: of the column.
        kind: how its values are written: ``text``, ``verdict``, ``number``, ``count`` or ``share``.
        empty: where rows without a value are sorted to, ``low`` or ``high``.
    """

    title: str
    kind: str = "number"
    empty: str = "low"


@dataclass(frozen=True)
class Table:
    """A table that sorts and filters.

    Attributes:
        name: of its element.
        caption: for those who hear it.
        columns: of it.
        rows: a value for each column; in the order that is shown first.
        sorted: the column that they are ordered by.
        descending: whether its highest values come first.
        links: {row: the number of the photo's card}.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[list[Any]]
    sorted: int
    descending: bool
    links: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def data(self, page: int, printed: int) -> dict[str, Any]:
        """What the page's script takes."""
        return {**dataclasses.asdict(self), "page": page, "printed": printed}


def require() -> Any:
    """Jinja2.

    Raises:
        MissingDependency: it is not installed.
    """
    return extras.require("jinja2", "The HTML report", "report")


def html(
    comparison: Comparison,
    reference: Recording,
    candidate: Recording,
    photos: Mapping[str, str] | None = None,
    gate: Judgement | None = None,
    worst: int = 12,
    typical: int = 6,
) -> bytes:
    """The report.

    Args:
        comparison: of the two recordings.
        reference: whose maps are shown.
        candidate: likewise.
        photos: {name in the recording: path}; where one is missing or has changed, its maps are shown alone.
        gate: what was asked of the comparison, judged; None: nothing was.
        worst: photos to show, the least agreeing first.
        typical: photos to show around the median agreement.

    Returns:
        UTF-8. Fewer photos than ``worst`` and ``typical`` together are all shown.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    environment = require().Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=require().StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"percent": percent, "number": number, "csp": _csp, "interval": interval}
    source = resources.files(__package__ or "").joinpath("report.html").read_text("utf-8")

    lower = _lower(comparison.measure)
    order = ranked(comparison)
    which = chosen(len(order), worst, typical)
    met = {reference.names[i]: (i, j) for i, j in matched(reference, candidate)[0].tolist()}

    def card(at: int) -> Card:
        row = order[at]
        value, place = agreement(comparison, row), met.get(row.image)
        if place is None:
            return Card(at + 1, row, value, None, "Its maps are not in the recordings that were given.")
        photo, note = _photo(row, photos or {})
        drawn = pictures.draw(reference, candidate, comparison.judged, place, photo)
        return Card(at + 1, row, value, drawn, note)

    cards = {part: [card(at) for at in places] for part, places in which.items()}
    page = environment.from_string(source).render(
        c=comparison,
        gate=gate,
        counts={verdict: sum(row.verdict == verdict for row in comparison.rows) for verdict in VERDICTS},
        lower=lower,
        is_lower=_lower,
        histograms=_histograms(comparison),
        cards=cards,
        images=_images_table(comparison, order, cards),
        classes=_classes_table(comparison),
        curve=_curve(comparison, lower),
        layers=_layers(comparison),
        sides=_sides(comparison),
        photos_digest=_digest(comparison.rows),
        units=[decisions.scale(side).unit for side in (reference, candidate)],
        measures={
            name: comparison.statistics.get(name) for name in (*_measures(comparison), SCORE_DIFFERENCE)
        },
        read=READ,
        defined={name: get(name) for name in _measures(comparison)},
        jet=_colours(),
        lost=_hex(pictures.LOST),
        gained=_hex(pictures.GAINED),
        width=charts.WIDTH,
        height=charts.HEIGHT,
        plot=charts,
        page=PAGE,
        printed=PRINTED,
    )
    # A file name may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    encoded: bytes = page.lstrip().encode("utf-8", "backslashreplace")
    return encoded


def ranked(comparison: Comparison) -> list[Row]:
    """The photos, those that agree least first; before them those whose agreement is undefined."""

    def key(row: Row) -> tuple[bool, float]:
        value = agreement(comparison, row)
        return value is not None, 0.0 if value is None else -value if _lower(comparison.measure) else value

    return sorted(comparison.rows, key=key)


def agreement(comparison: Comparison, row: Row) -> float | None:
    """By the measure that verdicts go by; None if it is undefined."""
    return row.agreement[comparison.judged.name][comparison.measure]


def chosen(count: int, worst: int, typical: int) -> dict[str, range]:
    """The places of the photos to show, in an order of ``count`` that begins with the worst.

    The typical ones lie around the median, and the worst before them, fewer where those begin earlier.
    Where all can be shown, all are.
    """
    if count <= worst + typical:
        return {"all": range(count)}
    start = (count - typical) // 2
    return {"worst": range(min(worst, start)), "typical": range(start, start + typical)}


def percent(share: float) -> str:
    """A share as it is read: at most one decimal."""
    return f"{100 * share:.1f}".removesuffix(".0") + "\u00a0%"


def number(value: float | None) -> str:
    """With three decimals, as the page's script writes it; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.3f}".replace("-", "−") if abs(value) < 1e6 else f"{value:.3e}".replace("-", "−")


def interval(one: Statistic, share: bool = False) -> str:
    """The 95 % interval of a mean."""
    written = percent if share else number
    return f"{written(one.low)} to {written(one.high)}"


def _photo(row: Row, photos: Mapping[str, str]) -> tuple[Photo | None, str]:
    """The photo, or why it is not shown."""
    path = photos.get(row.image)
    if path is None:
        return None, "The photo is not at hand: the maps alone are shown."
    try:
        with open(path, "rb") as file:
            data = file.read()
        photo = images.load(data, f"'{row.image}'")
    except (OSError, ImageError):
        return None, "The photo cannot be read any more: the maps alone are shown."
    if row.sha256 and hashlib.sha256(data).hexdigest() != row.sha256:
        return None, "The photo has changed since it was recorded: the maps alone are shown."
    return photo, ""


def _images_table(comparison: Comparison, order: Sequence[Row], cards: Mapping[str, Sequence[Card]]) -> Table:
    others = _measures(comparison)[1:]
    columns = (
        Column("Photo", "text"),
        Column("Verdict", "verdict"),
        Column(comparison.measure, empty="high" if _lower(comparison.measure) else "low"),
        Column("Reference", "text"),
        Column("its score"),
        Column("Candidate", "text"),
        Column("its score"),
        Column("Score difference", empty="high"),
        *(Column(name, empty="high" if _lower(name) else "low") for name in others),
    )
    rows = [
        [
            row.image,
            row.verdict,
            _plain(agreement(comparison, row)),
            row.reference.label,
            _plain(row.reference.score),
            row.candidate.label,
            _plain(row.candidate.score),
            _plain(row.score_difference),
            *(_plain(row.agreement[comparison.judged.name].get(name)) for name in others),
        ]
        for row in order
    ]
    links = {card.number - 1: card.number for part in cards.values() for card in part}
    return Table("images", "All photos", columns, rows, 2, _lower(comparison.measure), links)


def _classes_table(comparison: Comparison) -> Table:
    columns = (
        Column("Class", "text"),
        Column("Photos", "count"),
        Column("Same answer", "share"),
        Column("Same reason", "share"),
        Column(f"Mean {comparison.measure}", empty="high" if _lower(comparison.measure) else "low"),
    )
    rows: list[list[Any]] = [
        [one.label, one.count, _plain(one.same_answer), _plain(one.same_reason), _plain(one.agreement)]
        for one in comparison.by_class
    ]
    return Table("classes", "Results by class", columns, rows, 3, descending=False)


def _measures(comparison: Comparison) -> list[str]:
    """Those of the rows, the one that verdicts go by first."""
    found = dict.fromkeys(m for row in comparison.rows for m in row.agreement[comparison.judged.name])
    return sorted(found, key=lambda name: name != comparison.measure)


def _histograms(comparison: Comparison) -> dict[str, tuple[charts.Histogram, Statistic]]:
    values: dict[str, list[float | None]] = {
        name: [row.agreement[comparison.judged.name].get(name) for row in comparison.rows]
        for name in _measures(comparison)
    }
    values[SCORE_DIFFERENCE] = [row.score_difference for row in comparison.rows]
    found = {}
    for name, some in values.items():
        known = [value for value in some if value is not None]
        if known and name in comparison.statistics:
            threshold = comparison.threshold if name == comparison.measure else None
            found[name] = charts.histogram(known, threshold), comparison.statistics[name]
    return found


def _curve(comparison: Comparison, lower: bool) -> charts.Curve | None:
    """None unless the measure is defined at two layers at least."""
    found = list(_layers(comparison).values())
    several = sum(one is not None for one in found) > 1
    return charts.curve(found, comparison.threshold, lower) if several else None


def _layers(comparison: Comparison) -> dict[str, Statistic | None]:
    """The measure at each pair, from the input to the output; None where no photo defines it."""
    return {pair.name: comparison.by_layer[pair.name].get(comparison.measure) for pair in comparison.pairs}


def _sides(comparison: Comparison) -> list[tuple[str, str, str]]:
    """What made the two recordings, line by line: (what, reference's, candidate's)."""
    two = [_described(maker) for maker in (comparison.reference, comparison.candidate)]
    return [
        (name, two[0].get(name, "–"), two[1].get(name, "–")) for name in dict.fromkeys([*two[0], *two[1]])
    ]


def _described(maker: Maker) -> dict[str, str]:
    explained = "probability" if maker.probability else "score"
    if maker.activation and not maker.probability:
        explained += f" before {maker.activation}"
    return {
        "File": maker.model,
        "SHA-256": maker.sha256 or "unknown",
        "Recorded by": maker.tool or "unknown",
        **dict(sorted(maker.runtime.items())),
        "Method": maker.method,
        "Task": maker.task,
        "Explained": explained,
        "Classes": "unnamed" if maker.labels is None else f"{len(maker.labels)} named",
        "Layers": ", ".join(maker.layers),
        "Photos prepared": "unknown" if maker.preprocess is None else _prepared(maker.preprocess),
    }


def _prepared(how: Preprocess) -> str:
    """Field by field, as ``--preprocess`` takes them."""
    return "; ".join(f"{name} {_written(value)}" for name, value in dataclasses.asdict(how).items())


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_written, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value) if value != "" else "–"


def _digest(rows: Sequence[Row]) -> str:
    """Of the list that ``sha256sum`` makes of the photos; "" if one's hash is unknown."""
    if not rows or not all(row.sha256 for row in rows):
        return ""
    lines = "".join(f"{row.sha256}  {row.image}\n" for row in rows)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _plain(value: float | None) -> float | None:
    """For JSON: five digits, and nothing where there is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _lower(measure: str) -> bool:
    """Whether lower values of it agree better."""
    return measure == SCORE_DIFFERENCE or get(measure).better == "lower"


def _colours() -> list[str]:
    """The heatmaps' colours, from cold to hot."""
    return [_hex(rgb) for rgb in colourize(np.linspace(0, 1, 9, dtype=np.float32)[None])[0]]


def _hex(rgb: Sequence[int]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in rgb)


def _csp(text: str) -> str:
    """The hash by which a Content-Security-Policy lets a script or a style in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
