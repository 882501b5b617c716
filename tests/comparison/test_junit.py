"""JUnit XML, held against the rules of those who read it."""

from xml.etree import ElementTree

import pytest
from comparison.recordings import hot, recording, spots

from onnxcam.comparison import compare
from onnxcam.comparison.gate import judge, unable
from onnxcam.comparison.junit import junit

#: Element: (its children, the attributes it must have, those it may have, whether it may have text).
#: After Jenkins' junit-10.xsd; and GitLab wants a classname of each case.
RULES = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}, False),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"skipped", "time", "timestamp", "hostname", "id", "package", "group", "file", "log", "url"},
        False,
    ),
    "properties": ({"property"}, set(), set(), False),
    "property": (set(), {"name", "value"}, set(), False),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name", "classname"},
        {"time", "group"},
        False,
    ),
    "failure": (set(), set(), {"type", "message"}, True),
    "error": (set(), set(), {"type", "message"}, True),
    "system-out": (set(), set(), set(), True),
}


def checked(data):
    """The suite of a file that keeps the rules."""
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuites"
    assert data.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
    for element in root.iter():
        children, must, may, text = RULES[element.tag]
        assert {child.tag for child in element} <= children
        assert must <= {*element.attrib} <= must | may
        assert text or not (element.text or "").strip()
    (suite,) = root
    cases = suite.findall("testcase")
    for name in ("failure", "error"):
        counted = sum(case.find(name) is not None for case in cases)
        assert int(suite.get({"failure": "failures", "error": "errors"}[name])) == counted
    assert int(suite.get("tests")) == len(cases)
    assert len({case.get("name") for case in cases}) == len(cases)
    return suite


def comparison(lost=(), **more):
    one = recording(hot(0, 1, 2, **more), spots((0, 0), (1, 1), (2, 2)), sha256=("", "", ""))
    two = recording(hot(0, 1, 1, **more), spots((0, 0), (4, 4), (2, 2)), sha256=("", "", ""), skipped=lost)
    return compare(one, two)


def test_each_criterion_is_a_case():
    found = comparison(lost=[("lost.jpg", "cannot be decoded")])
    suite = checked(junit(judge(found, ["same_answer >= 0.9", "js <= 0.5"], max_skipped=0.5), found))
    assert suite.attrib == {
        "name": "model.onnx against model.onnx",
        "tests": "2",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
        "time": "0",
    }
    failed, passed = suite.findall("testcase")
    assert failed.get("name") == "same_answer >= 0.9"
    assert failed.find("failure").get("message") == "found 0.6667"
    assert failed.find("failure").text == "found 0.6667\n2.jpg: cat -> bee"
    assert passed.get("name") == "js.mean <= 0.5"
    assert len(passed) == 0
    assert suite.find("system-out").text == "skipped: lost.jpg (candidate): cannot be decoded"
    told = {one.get("name"): one.get("value") for one in suite.find("properties")}
    assert told["photos"] == "3"
    assert told["skipped"] == "1"
    assert told["verdict"] == "pearson 0.8"
    assert told["layer"] == "last"


def test_what_could_not_be_judged_is_an_error():
    found = comparison()
    suite = checked(junit(judge(found, ["same_answer >= 0.1", "emd <= 0.5"]), found))
    assert [case.find("error") is not None for case in suite.findall("testcase")] == [False, True]
    assert suite.find("system-out") is None
    # Too many skipped photos are no criterion's: an error of their own.
    lost = comparison(lost=[("a", "x"), ("b", "y")])
    suite = checked(junit(judge(lost, ["same_answer >= 0.1"]), lost))
    assert [case.get("name") for case in suite.findall("testcase")] == [
        "same_answer >= 0.1",
        "could not judge",
    ]
    assert "2 of 5 photos are skipped" in suite.findall("testcase")[1].find("error").get("message")


def test_a_comparison_that_could_not_be_made_is_an_error_too():
    suite = checked(junit(unable("no layer in common")))
    assert suite.get("name") == "onnxcam compare"
    assert suite.find("testcase").find("error").get("message") == "no layer in common"


@pytest.mark.parametrize(
    "name", ['<&">.jpg', "bell\x07.jpg", "undecodable\udcff.jpg", "ü 猫 \U0001f431.jpg", "\ufffe"]
)
def test_any_name_of_a_photo_makes_a_file_that_can_be_read(name):
    found = comparison(lost=[(name, "broken")])
    text = checked(junit(judge(found, ["same_answer >= 0.1"]), found)).find("system-out").text
    wanted = name.translate({7: "\ufffd", 0xDCFF: "\ufffd", 0xFFFE: "\ufffd"})
    assert text == f"skipped: {wanted} (candidate): broken"
