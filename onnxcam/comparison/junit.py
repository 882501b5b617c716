"""A gate's judgement as JUnit XML, which Jenkins, GitLab and others show beside the tests.

One suite, one case per criterion: a ``failure`` where it is not met, an ``error`` where it could not be
judged. Photos that were skipped are in ``system-out``. The elements and attributes are those that Jenkins'
schema (junit-10.xsd of its xUnit plugin) and GitLab's parser have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from .data import Comparison
from .gate import Judgement

CLASSNAME = "onnxcam.compare"

# What XML 1.0 cannot hold: control characters, and halves of surrogate pairs, as undecodable names have them.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(judgement: Judgement, comparison: Comparison | None = None) -> bytes:
    """The XML file, UTF-8.

    Args:
        judgement: of a gate.
        comparison: that was judged; None if it could not be made.
    """
    name = "onnxcam compare"
    if comparison is not None:
        name = f"{comparison.candidate.model} against {comparison.reference.model}"
    suite = Element("testsuite")
    if comparison is not None:
        properties = SubElement(suite, "properties")
        for key, value in _properties(comparison).items():
            SubElement(properties, "property", name=_clean(key), value=_clean(value))
    failures = errors = 0
    for finding in judgement.findings:
        case = SubElement(suite, "testcase", classname=CLASSNAME, name=_clean(finding.text), time="0")
        if finding.passed is None:
            errors += 1
            _problem(case, "error", "could not judge", finding.why)
        elif not finding.passed:
            failures += 1
            _problem(case, "failure", "gate", finding.why, finding.worst)
    if judgement.status == "could not judge" and not errors:
        errors += 1
        case = SubElement(suite, "testcase", classname=CLASSNAME, name="could not judge", time="0")
        _problem(case, "error", "could not judge", judgement.reason)
    if comparison is not None and comparison.skipped:
        told = [f"skipped: {one.image} ({one.side}): {one.reason}" for one in comparison.skipped]
        SubElement(suite, "system-out").text = _clean("\n".join(told))
    counts = {"tests": len(suite.findall("testcase")), "failures": failures, "errors": errors, "skipped": 0}
    suite.attrib = {"name": _clean(name), **{key: str(count) for key, count in counts.items()}, "time": "0"}
    root = Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, "utf-8", xml_declaration=True)) + b"\n"


def _properties(comparison: Comparison) -> Mapping[str, str]:
    return {
        "reference": comparison.reference.model,
        "reference.sha256": comparison.reference.sha256,
        "candidate": comparison.candidate.model,
        "candidate.sha256": comparison.candidate.sha256,
        "photos": str(len(comparison.rows)),
        "skipped": str(len(comparison.skipped)),
        "layer": comparison.judged.name,
        "verdict": f"{comparison.measure} {comparison.threshold:g}",
    }


def _problem(case: Element, kind: str, what: str, message: str, lines: tuple[str, ...] = ()) -> None:
    problem = SubElement(case, kind, type=what, message=_clean(message))
    problem.text = _clean("\n".join((message, *lines)))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
