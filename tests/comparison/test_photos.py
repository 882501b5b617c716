"""Which photo of one recording is which of the other."""

import numpy as np
from comparison.recordings import recording

from onnxcam.comparison.photos import matched


def side(photos, skipped=(), sizes=None):
    """Of photos "name:hash"; without a hash it is unknown."""
    names, hashes = zip(*(photo.partition(":")[::2] for photo in photos), strict=True) if photos else ((), ())
    maps = np.zeros((len(names), 2, 2))
    return recording(None, maps, names=list(names), sha256=list(hashes), sizes=sizes, skipped=skipped)


def met(*sides):
    at, skipped = matched(*sides)
    pairs = [(sides[0].names[i], sides[1].names[j]) for i, j in at.tolist()]
    return pairs, [(one.image, one.side, one.reason) for one in skipped]


def test_photos_are_matched_by_name_and_hash_in_the_references_order():
    assert met(side(["a:1", "b:2", "c:3"]), side(["c:3", "a:1", "b:2"])) == (
        [("a", "a"), ("b", "b"), ("c", "c")],
        [],
    )


def test_renamed_photos_are_found_by_their_hash():
    assert met(side(["a:1", "b:2"]), side(["x/b.jpg:2", "y:1"]))[0] == [("a", "y"), ("b", "x/b.jpg")]
    # Even where the names have changed places.
    assert met(side(["a:1", "b:2"]), side(["a:2", "b:1"])) == ([("a", "b"), ("b", "a")], [])


def test_equal_photos_keep_to_their_names_first():
    assert met(side(["a:1", "b:1", "c:1"]), side(["z:1", "c:1", "a:1"])) == (
        [("a", "a"), ("b", "z"), ("c", "c")],
        [],
    )
    pairs, skipped = met(side(["a:1", "b:1"]), side(["b:1"]))
    assert pairs == [("b", "b")]
    assert skipped == [("a", "candidate", "it is not among the candidate's photos")]


def test_an_unknown_hash_leaves_the_name():
    assert met(side(["a:", "b:2"]), side(["a:1", "b:"]))[0] == [("a", "a"), ("b", "b")]
    assert met(side(["a:"]), side(["b:"]))[0] == []


def test_photos_of_one_name_and_different_bytes_are_not_the_same():
    pairs, skipped = met(side(["a:1", "b:2"]), side(["a:9", "b:2"]))
    assert pairs == [("b", "b")]
    assert skipped == [("a", "both", "the photos of this name are different files: their hashes differ")]
    # The other photo of that name has a partner of its own: this one alone is missing.
    pairs, skipped = met(side(["a:1", "b:2"]), side(["a:2"]))
    assert pairs == [("b", "a")]
    assert skipped == [("a", "candidate", "it is not among the candidate's photos")]


def test_what_a_side_lacks_is_listed_with_its_reason():
    one = side(["a:1", "b:2", "c:3"], [("d", "cannot be decoded"), ("e", "too dark"), ("f", "only here")])
    two = side(["a:1", "d:4", "g:7"], [("b", "the model crashed"), ("e", "too small"), ("h", "only there")])
    pairs, skipped = met(one, two)
    assert pairs == [("a", "a")]
    assert skipped == [
        ("b", "candidate", "the model crashed"),
        ("c", "candidate", "it is not among the candidate's photos"),
        ("d", "reference", "cannot be decoded"),
        ("g", "reference", "it is not among the reference's photos"),
        ("e", "both", "too dark"),
        ("f", "reference", "only here"),
        ("h", "candidate", "only there"),
    ]


def test_a_photo_of_two_sizes_is_skipped():
    one, two = (
        side(["a:1", "b:2"], sizes=[[480, 640], [9, 9]]),
        side(["a:1", "b:2"], sizes=[[640, 480], [9, 9]]),
    )
    pairs, skipped = met(one, two)
    assert pairs == [("b", "b")]
    assert skipped == [
        (
            "a",
            "both",
            "it has 640×480 pixels in the reference and 480×640 in the candidate; both must say its size as "
            "it is shown, after the rotation that its EXIF data ask for",
        )
    ]


def test_recordings_of_no_photos_have_none_in_common():
    assert met(side([]), side(["a:1"])) == (
        [],
        [("a", "reference", "it is not among the reference's photos")],
    )
