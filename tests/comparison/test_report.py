"""The report's HTML, without a browser: whole in itself, escaped, and with the comparison's numbers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from reported import THRESHOLD, comparison, names, nothing, photos, recordings, sha256

from onnxcam.comparison import agreement, pictures, report
from onnxcam.comparison.data import Pair, Skipped
from onnxcam.comparison.gate import Finding, Judgement, judge, unable
from onnxcam.comparison.summary import SCORE_DIFFERENCE
from onnxcam.errors import MissingDependency

VOID = {"meta", "link", "img", "input", "col", "br"}
HOSTILE = (
    "</script><script>globalThis.hacked = 1</script>",
    '"><img src="https://example.org/x.png" onerror="globalThis.hacked = 2">',
    "{{ 7 * 7 }} {% raw %} &amp; \u2028 <!--<script>",
    "not UTF-8 \udce9",
)


class Page(HTMLParser):
    """The elements of a page, as (tag, attributes, text), and that each one ends."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(data.decode("utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag
        if tag in ("td", "th"):
            self.handle_data(" ")

    def handle_data(self, data):
        for i in self._open:
            self.elements[i][2].append(data)

    def all(self, tag, **wanted):
        """The elements with these attributes: (attributes, text with single spaces)."""
        return [
            (attributes, " ".join("".join(text).split()))
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(k.rstrip("_")) == v for k, v in wanted.items())
        ]

    def raw(self, tag, **wanted):
        """The texts of such elements, as they are."""
        return [
            "".join(text)
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(k.rstrip("_")) == v for k, v in wanted.items())
        ]

    def text(self, id):
        """Of the element with this id."""
        return next(
            " ".join("".join(text).split())
            for _, attributes, text in self.elements
            if attributes.get("id") == id
        )

    def table(self, name):
        """What the page's script gets for a table."""
        held = self.raw("script", type="application/json")
        return next(table for table in map(json.loads, held) if table["name"] == name)


def made(agreements=(0.9, 0.95, 0.3, 0.85), gate=None, worst=12, typical=6, paths=None, **options):
    sides = recordings(names(len(agreements)))
    data = report.html(comparison(sides, agreements, **options), *sides, paths or {}, gate, worst, typical)
    return Page(data)


# --- whole in itself ---


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = made(paths=photos(tmp_path, names(4)))
    ids = {attributes["id"] for _, attributes, _ in page.elements if "id" in attributes}
    for tag, attributes, _ in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "video", "audio")
        for name, value in attributes.items():
            assert not name.startswith("on")  # the policy would not run it
            assert name not in ("style", "srcset", "action", "xlink:href")
            if name == "src":
                assert value.startswith("data:image/jpeg;base64,")
            if name == "href":
                assert value == "data:," or value.removeprefix("#") in ids
            if value and value.startswith("url("):
                assert value[5:-1] in ids
    assert "@import" not in page.raw("style")[0]
    assert "url(" not in page.raw("style")[0]
    assert len(page.all("img")) == 4 * 3


def test_its_policy_lets_in_its_own_script_and_style_and_nothing_else():
    page = made()
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    code = [text for text in page.raw("script") if text not in page.raw("script", type="application/json")]
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, (text,) in (("script-src", code), ("style-src", page.raw("style"))):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"


def test_ids_are_there_once():
    page = made(agreements=[0.9] * 40)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    sides = recordings(names(5))
    found, paths = comparison(sides, [0.9, 0.8, None, 0.1, 0.5]), photos(tmp_path, names(5))
    assert report.html(found, *sides, paths) == report.html(found, *sides, paths)


def test_pictures_and_many_rows_stay_small(tmp_path):
    sides = recordings(names(10_000), sizes=(400, 600))
    values = np.linspace(-0.2, 1, 10_000).tolist()
    order = [*range(12), *range(4997, 5003)]
    paths = photos(tmp_path, [names(10_000)[i] for i in order], (400, 600))
    data = report.html(comparison(sides, values), *sides, paths)
    page = Page(data)
    assert len(page.all("article")) == 18
    assert sum(len(attributes["src"]) for attributes, _ in page.all("img")) < 3e6
    assert len(page.table("images")["rows"]) == 10_000
    assert len(page.all("tr")) < 200  # the others are drawn when they are looked at
    assert len(data) < 5e6


# --- text from outside ---


def told(text):
    """A report where everything that comes from outside is this text."""
    sides = recordings([text, "good.png"], [text, "birch"], model=text)
    first, second = (
        dataclasses.replace(side, maker=dataclasses.replace(side.maker, tool=text, runtime={text: text}))
        for side in sides
    )
    found = comparison((first, second), [0.1, 0.9], skipped=[Skipped(text, "candidate", text)])
    gate = Judgement("failed", (Finding(text, 1, 0, False, text, (text,)),), text)
    return report.html(found, first, second, {}, gate)


@pytest.mark.parametrize("hostile", HOSTILE, ids=["script", "image", "template", "surrogate"])
def test_names_from_outside_are_text(hostile):
    data = told(hostile)
    page = Page(data)
    assert [tag for tag, _, _ in page.elements] == [tag for tag, _, _ in Page(told("plain")).elements]
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    shown = " ".join(hostile.encode("utf-8", "backslashreplace").decode().split())
    assert page.all("title")[0][1] == f"{shown} against {shown}"
    assert page.all("h3")[0][1] == shown
    assert page.all("figcaption")[-7][1] == f"Reference {shown} 1.000"
    assert page.text("gate").count(shown) == 3
    assert page.text("skipped").count(shown) == 2
    assert page.text("compared").count(shown) == 7
    assert page.table("images")["rows"][0][0] == hostile
    assert page.table("images")["rows"][0][3] == hostile
    assert page.table("classes")["rows"][1][0] == hostile
    for held in re.findall(rb'<script type="application/json">(.*?)</script>', data, re.DOTALL):
        assert not set(held) & set(b"<>&")


# --- what it says ---


def test_the_verdict_in_words():
    page = made((0.9, 0.95, 0.3, 0.85, 0.99), other=[4])
    head = page.all("header")[0][1]
    assert "No gate was set" in head
    assert "int8.onnx against float.onnx" in head
    assert "Of 5 photos the candidate gives the same answer for 80 % (95 % interval 70 % to 90 %)" in head
    assert "for the same reason for 60 % (50 % to 70 %)" in head
    assert "the pearson of the two maps of last is at least 0.8" in head
    assert "same answer for the same reason: 3 (60 %)" in page.text("summary")
    assert "same answer for another reason: 1 (20 %)" in page.text("summary")
    assert "another answer: 1 (20 %)" in page.text("summary")
    assert not [a for a, _ in page.all("section") if a.get("id") == "gate"]


MET = Finding("js.mean <= 0.3", 0.3, 0.25, True, "found 0.25")
MISSED = Finding(
    "pearson.mean >= 0.9", 0.9, 0.75, False, "found 0.75", ("a.png: pearson 0.1", "b.png: pearson 0.2")
)
UNKNOWN = Finding("ssim.mean >= 0.9", 0.9, None, None, "ssim was not measured")


@pytest.mark.parametrize(
    ("gate", "kind", "said"),
    [
        (Judgement("passed", (MET, MET)), "passed", "Gate passed All 2 criteria are met."),
        (Judgement("passed", (MET,)), "passed", "Gate passed Its criterion is met."),
        (
            Judgement("failed", (MET, MISSED)),
            "failed",
            "Gate failed 1 of 2 criteria is not met: pearson.mean >= 0.9.",
        ),
        (
            Judgement("failed", (MISSED, MISSED, MET)),
            "failed",
            "Gate failed 2 of 3 criteria are not met: pearson.mean >= 0.9, pearson.mean >= 0.9.",
        ),
        (
            Judgement("failed", (MISSED._replace(passed=np.False_),)),
            "failed",
            "Gate failed 1 of 1 criterion is not met: pearson.mean >= 0.9.",
        ),
        (
            Judgement("could not judge", (MISSED, UNKNOWN), "nothing is known"),
            "unjudged",
            "The gate could not judge nothing is known",
        ),
    ],
    ids=["passed", "one", "failed", "both", "numpy", "unjudged"],
)
def test_the_gate(gate, kind, said):
    page = made(gate=gate)
    assert [text for a, text in page.all("div") if (a.get("class") or "").startswith("verdict")] == [said]
    assert page.all("div", class_=f"verdict {kind}")
    shown = page.text("gate")
    results = {True: "met", False: "not met", None: "could not be judged"}
    for one in gate.findings:
        passed = None if one.passed is None else bool(one.passed)
        assert " ".join((one.text, results[passed], one.why, *one.worst)) in shown


def test_the_judgement_of_a_gate_is_the_reports():
    sides = recordings(names(5))
    found = comparison(sides, [0.9, 0.95, 0.3, 0.85, 0.99], other=[4])
    for criteria in (["js <= 0.5"], ["same_reason >= 0.7", "js <= 0.5"], ["ssim >= 0.5"]):
        judgement = judge(found, criteria)
        page = Page(report.html(found, *sides, gate=judgement))
        headline = {
            "passed": "Gate passed",
            "failed": "Gate failed",
            "could not judge": "The gate could not judge",
        }
        assert page.all("div")[0][1].startswith(headline[judgement.status])
        for one in judgement.findings:
            assert one.text in page.text("gate")
            assert one.why in page.text("gate")


def test_numbers_of_the_summary_and_the_layers():
    page = made((0.9, -0.5, None, 0.8))
    summary = page.text("summary")
    assert "pearson higher 0.400 0.300 to 0.500 0.800 −0.370 0.890 −0.500 3" in summary
    assert "js lower 0.250 0.150 to 0.350 0.250 0.250 0.250 0.250 1" in summary
    assert "The models part at stem: the first layer" in page.text("layers")
    assert "1 stem (they part) 0.500 0.400 to 0.600" in page.text("layers")
    assert "2 last (verdicts) 0.400 0.300 to 0.500" in page.text("layers")
    assert "undefined for 1" in page.text("distributions")


@pytest.mark.parametrize(("threshold", "anchor"), [(1.0, "end"), (0.5, "middle"), (-1.0, "start")])
def test_the_thresholds_words_stay_within_the_chart(threshold, anchor):
    page = made((-0.9, 0.9), threshold=threshold)
    (words,) = page.all("text", class_="limit-text")
    assert words[0]["text-anchor"] == anchor
    assert words[1] == f"threshold {threshold:g}"


def test_one_layer_has_no_curve():
    page = made(layers=["last"])
    assert "One layer was compared" in page.text("layers")
    assert "1 last (verdicts)" in page.text("layers")
    assert not page.all("polyline")


def test_layers_that_do_not_part():
    sides = recordings(names(2))
    found = dataclasses.replace(comparison(sides, [0.9, 0.9]), parts=None)
    assert "the models do not part" in Page(report.html(found, *sides)).text("layers")


def test_tables_hold_every_photo_and_class_the_worst_first():
    page = made((0.9, None, 0.3, 0.85), other=[2])
    table = page.table("images")
    titles = [column["title"] for column in table["columns"]]
    assert titles[:4] == ["Photo", "Verdict", "pearson", "Reference"]
    assert [row[:3] for row in table["rows"]] == [
        ["day 1/photo 1.png", "other reason", None],
        ["day 2/photo 2.png", "other answer", 0.3],
        ["day 0/photo 3.png", "same reason", 0.85],
        ["day 0/photo 0.png", "same reason", 0.9],
    ]
    assert table["rows"][1][3:] == ["ash", 0.998, "birch", 0.25, 0.125, 0.25]
    assert (table["sorted"], table["descending"]) == (2, False)
    assert page.table("classes")["rows"] == [["birch", 1, 1.0, 0.0, None], ["ash", 3, 0.5, 0.25, 0.75]]


def test_first_rows_are_there_without_a_script():
    page = made([0.5 + i / 200 for i in range(60)])
    body = [text for _, text in page.all("tr") if text.startswith("day")]
    assert len(body) == report.PAGE
    assert body[0] == "day 0/photo 0.png other reason 0.500 ash 1.000 ash 0.750 0.125 0.250"
    assert "Without JavaScript the first 50 of 60 lines are shown." in page.all("noscript")[0][1]
    assert "100 % 0 % –" in page.text("table-classes")


def test_lower_is_better_turns_the_order_round():
    page = made((0.1, 0.5, None, 0.2), measure="emd", threshold=0.3)
    table = page.table("images")
    assert [row[2] for row in table["rows"]] == [None, 0.5, 0.2, 0.1]
    assert table["descending"] is True
    assert "the emd of the two maps of last is at most 0.3" in page.all("header")[0][1]


@pytest.mark.parametrize(
    ("count", "worst", "typical", "shown"),
    [
        (0, 12, 6, {"all": []}),
        (18, 12, 6, {"all": list(range(18))}),
        (19, 12, 6, {"worst": list(range(6)), "typical": [6, 7, 8, 9, 10, 11]}),
        (30, 12, 6, {"worst": list(range(12)), "typical": list(range(12, 18))}),
        (1000, 2, 2, {"worst": [0, 1], "typical": [499, 500]}),
        (9, 2, 1, {"worst": [0, 1], "typical": [4]}),
        (5, 2, 0, {"worst": [0, 1], "typical": []}),
    ],
)
def test_which_photos_are_shown(count, worst, typical, shown):
    assert {part: list(places) for part, places in report.chosen(count, worst, typical).items()} == shown


def test_the_worst_and_the_typical_are_shown_and_linked():
    values = [i / 40 for i in range(40)]
    page = made(values, worst=3, typical=2)
    numbers = ["photo-1", "photo-2", "photo-3", "photo-20", "photo-21"]
    assert [attributes["id"] for attributes, _ in page.all("article")] == numbers
    assert page.table("images")["links"] == {"0": 1, "1": 2, "2": 3, "19": 20, "20": 21}
    assert "photo 0.png" in page.text("photo-1")
    assert "pearson 0.475" in page.text("photo-20")


def test_photos_that_are_not_at_hand_are_said_to_be_missing(tmp_path):
    whole = names(4)
    paths = photos(tmp_path, whole)
    sides = recordings(whole)
    hashes = tuple(sha256(paths[name]) for name in whole)
    sides = tuple(dataclasses.replace(side, sha256=hashes) for side in sides)
    found = comparison(sides, [0.1, 0.2, 0.3, 0.4])
    del paths[whole[0]]
    with open(paths[whole[1]], "wb") as file:
        file.write(b"no photo")
    paths[whole[2]] = paths[whole[3]]
    page = Page(report.html(found, *sides, paths))
    cards = {attributes["id"]: text for attributes, text in page.all("article")}
    assert "The photo is not at hand: the maps alone are shown." in cards["photo-1"]
    assert "The photo cannot be read any more: the maps alone are shown." in cards["photo-2"]
    assert "The photo has changed since it was recorded: the maps alone are shown." in cards["photo-3"]
    assert "alone" not in cards["photo-4"]
    assert len(page.all("img")) == 12


def test_recordings_of_other_photos_have_no_pictures():
    sides = recordings(names(3))
    page = Page(report.html(comparison(sides, [0.1, 0.2, 0.3]), *recordings(["elsewhere.png"])))
    assert page.text("photo-1").endswith("Its maps are not in the recordings that were given.")
    assert not page.all("img")


def test_photos_are_the_same_by_their_bytes_not_their_names():
    sides = recordings(names(3))
    first = dataclasses.replace(sides[0], sha256=("0" * 64, "1" * 64, "2" * 64))
    turned = dataclasses.replace(sides[1], sha256=("2" * 64, "1" * 64, "0" * 64))
    page = Page(report.html(comparison((first, turned), [0.1, 0.2, 0.3]), first, turned))
    for i in range(3):
        drawn = pictures.draw(first, turned, Pair("last", "last"), (i, 2 - i), None)
        shown = [attributes["src"] for attributes, _ in page.all("img")[3 * i : 3 * i + 3]]
        assert shown == [drawn.reference, drawn.candidate, drawn.difference]


def test_what_had_to_be_assumed_is_said():
    sides = recordings(names(2))
    blind = dataclasses.replace(sides[1], maker=dataclasses.replace(sides[1].maker, preprocess=None))
    found = dataclasses.replace(
        comparison((sides[0], blind), [0.1, 0.2]), notes=("The first <note>.", "More.")
    )
    page = Page(report.html(found, sides[0], blind))
    assert [text for _, text in page.all("p", class_="note")] == ["The first <note>.", "More."]
    assert "Photos prepared input x; size 32, 32; fit crop; resize 40;" in page.text("compared")
    assert "anchor center unknown" in page.text("compared")


def test_agreement_that_is_undefined_for_every_photo():
    page = made((None, None, None))
    assert "pearson higher undefined for every photo 0" in page.text("summary")
    assert "2 last (verdicts) undefined for every photo 0" in page.text("layers")
    sides = recordings(names(2))
    found = comparison(sides, [None, None])
    page = Page(report.html(dataclasses.replace(found, parts=found.pairs[1]), *sides))
    said = "the mean pearson misses 0.8 because it is undefined for every photo"
    assert said in page.text("layers")
    assert not page.all("polyline")
    assert "pearson undefined" in page.text("photo-1")


def test_what_was_compared():
    page = made()
    shown = page.text("compared")
    for said in (
        "File float.onnx int8.onnx",
        f"SHA-256 {'0' * 64} {'1' * 64}",
        "onnxruntime 1.20.0 1.21.0",
        "providers CPUExecutionProvider XNNPACK",
        "Recorded by onnxcam 1.2.3 onnxcam 1.2.3",
        "Seed of the bootstrap: 7",
        "mean 0; std 1; layout NCHW",
    ):
        assert said in shown
    differs = [text.split()[0] for attributes, text in page.all("tr", class_="differs") if "onnx" in text]
    assert {"File", "onnxruntime"} <= set(differs)
    assert "Recorded" not in differs


def test_the_digest_is_that_of_sha256sum(tmp_path):
    whole = ("a.png", "b.png", "c.png")
    paths = photos(tmp_path, whole)
    for name, path in paths.items():
        (tmp_path / name).write_bytes(Path(path).read_bytes())
    sides = tuple(
        dataclasses.replace(side, sha256=tuple(sha256(paths[n]) for n in whole)) for side in recordings(whole)
    )
    listed = "".join(f"{sha256(paths[n])}  {n}\n" for n in whole)
    if sys.platform == "linux":
        assert (
            subprocess.run(["sha256sum", *whole], cwd=tmp_path, capture_output=True, text=True).stdout
            == listed
        )
    page = Page(report.html(comparison(sides, [0.1, 0.2, 0.3]), *sides, paths))
    assert hashlib.sha256(listed.encode()).hexdigest() in page.text("compared")
    assert "as sha256sum writes it" not in made().text("compared")  # of photos whose hashes are unknown


def test_skipped_photos_are_all_named():
    skipped = [Skipped(f"{i}.png", "both", "it is damaged") for i in range(report.PRINTED + 3)]
    page = made(skipped=skipped)
    assert "0.png both it is damaged 1.png both it is damaged" in page.text("skipped")
    assert "And 3 more." in page.text("skipped")
    assert "503 photos were skipped." in page.all("header")[0][1]
    assert "None: both sides explained every photo." in made().text("skipped")


def test_no_photo_in_common():
    sides = recordings(["a.png"])
    found = nothing(sides, [Skipped("a.png", "candidate", "it crashed")])
    page = Page(report.html(found, *sides, gate=unable("there are no photos")))
    assert "No photo could be compared. 1 were skipped." in page.all("header")[0][1]
    assert "The gate could not judge there are no photos" in page.all("header")[0][1]
    assert "a.png candidate it crashed" in page.text("skipped")
    assert not page.all("img")


def test_every_measure_has_its_sentence_source_and_sense():
    assert set(report.READ) == {*agreement.names(), SCORE_DIFFERENCE}
    page = made()
    reading = page.text("reading")
    for name in ("pearson", "js"):
        assert report.READ[name] in reading
        assert agreement.get(name).source in reading
        assert " ".join(agreement.get(name).formula.split()) in reading
    assert str(THRESHOLD) in reading


@pytest.mark.parametrize(
    ("reference", "candidate", "said"),
    [
        ({"activation": "softmax"}, {"probability": True}, "Scores are probabilities."),
        ({}, {}, "Scores are logits."),
        (
            {},
            {"activation": "softmax"},
            "The reference: Scores are logits. The candidate: Scores are probabilities.",
        ),
        ({"task": "detection"}, {"task": "detection"}, "Scores are as the model gives them."),
    ],
    ids=["probabilities", "logits", "both", "detection"],
)
def test_what_the_scores_are(reference, candidate, said):
    first, second = (
        dataclasses.replace(side, maker=dataclasses.replace(side.maker, **of))
        for side, of in zip(recordings(names(2)), (reference, candidate), strict=True)
    )
    page = Page(report.html(comparison((first, second), [0.1, 0.2]), first, second))
    assert said in page.text("all")


def test_without_jinja2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    sides = recordings(names(2))
    with pytest.raises(
        MissingDependency, match=r'report needs \'jinja2\'.*`pip install "onnxcam\[report\]"`'
    ):
        report.html(comparison(sides, [0.1, 0.2]), *sides)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "0.500"), (-0.25, "−0.250"), (None, "–"), (17, "17.000"), (-1.5e9, "−1.500e+09")],
)
def test_numbers_as_they_are_written(value, said):
    assert report.number(value) == said


@pytest.mark.parametrize(
    ("share", "said"), [(1, "100\u00a0%"), (0, "0\u00a0%"), (0.8754, "87.5\u00a0%"), (0.1, "10\u00a0%")]
)
def test_shares_as_they_are_written(share, said):
    assert report.percent(share) == said
