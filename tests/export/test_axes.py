"""The algebra of axes, against tensors whose every entry says where it comes from."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam.export.axes import Atom, Term, Tokens, atom, contracted, cut, letters, mixed, reshaped
from onnxcam.export.layouts import layout_of
from onnxcam.grids import channels_first

N, C, H, W = 2, 4, 6, 8
NCHW = (atom("N", None), atom("C", C), atom("y", H), atom("x", W))


def places():
    """(N, C, H, W): each entry is its image and its place."""
    cells = np.arange(N * H * W, dtype=np.float32).reshape(N, 1, H, W)
    return np.broadcast_to(cells, (N, C, H, W))


def factorings(size):
    """All ways to write a size as a product of one to three factors."""
    pairs = [(a, size // a) for a in range(1, size + 1) if size % a == 0]
    return [
        (size,),
        *pairs,
        *((a, b, rest // b) for a, rest in pairs for b in range(1, rest + 1) if rest % b == 0),
    ]


@st.composite
def journeys(draw):
    """Reshapes and transposes, one after another, of a tensor and of its axes."""
    tensor, axes, shape = places(), NCHW, ("N", C, H, W)
    for _ in range(draw(st.integers(1, 4))):
        sizes = list(tensor.shape)
        if draw(st.booleans()):  # split an axis
            k = draw(st.integers(0, len(sizes) - 1))
            wanted = sizes[:k] + list(draw(st.sampled_from(factorings(sizes[k])))) + sizes[k + 1 :]
        else:  # join neighbours
            k = draw(st.integers(0, len(sizes) - 1))
            last = draw(st.integers(k, min(k + 2, len(sizes) - 1)))
            wanted = [*sizes[:k], int(np.prod(sizes[k : last + 1])), *sizes[last + 1 :]]
        # A size that holds the batch is not known; it is found where that goes.
        found = None
        for open_axis in range(len(wanted)):
            dims = tuple("?" if j == open_axis else d for j, d in enumerate(wanted))
            trial = reshaped(axes, shape, dims)
            if trial is not None and Atom("N", None) in trial[open_axis]:
                found, shape = trial, dims
                break
        if found is None:
            break
        tensor, axes = tensor.reshape(wanted), found
        perm = draw(st.permutations(range(tensor.ndim)))
        tensor, axes = tensor.transpose(perm), tuple(axes[j] for j in perm)
        shape = tuple(shape[j] for j in perm)
    return tensor, axes


@settings(max_examples=300, deadline=None)
@given(journeys())
def test_whatever_is_moved_is_found_again(journey):
    tensor, axes = journey
    assert len(axes) == tensor.ndim
    layout = layout_of(axes)
    assert layout is not None
    np.testing.assert_array_equal(channels_first(tensor, layout), places())


def test_a_window_partition():
    dims = ("N", 2, 3, 2, 4, C)
    cut_up = reshaped((NCHW[0], *NCHW[2:], NCHW[1]), ("N", H, W, C), dims)
    assert cut_up is not None
    assert cut_up[1:5] == ((Atom("y", 2, 3),), (Atom("y", 3),), (Atom("x", 2, 4),), (Atom("x", 4),))
    order = tuple(cut_up[k] for k in (0, 1, 3, 2, 4, 5))
    windows = reshaped(order, ("N", 2, 2, 3, 4, C), ("M", 12, C))
    assert windows == (
        (Atom("N", None), Atom("y", 2, 3), Atom("x", 2, 4)),
        (Atom("y", 3), Atom("x", 4)),
        (Atom("C", C),),
    )


def test_a_cut_that_is_joined_again_leaves_no_trace():
    cut_up = reshaped(NCHW, ("N", C, H, W), ("N", 2, 2, 2, 3, W))
    assert cut_up is not None
    assert reshaped(cut_up, ("N", 2, 2, 2, 3, W), ("N", C, H, W)) == NCHW


def test_what_cannot_be_reshaped():
    assert reshaped(NCHW, ("N", C, H, W), ("N", 9, "a", "b")) is None  # two open sizes
    assert reshaped(NCHW, ("N", C, H, W), ("N", C * H, 3, "a")) is None  # 3 does not divide the columns
    assert reshaped(NCHW, ("N", C, H, W), (1, C, H, W)) is None  # the batch has no number
    tokens = (atom("N", None), (Tokens(1, (Atom("y", 3), Atom("x", 5)), 0),), atom("C", C))
    assert reshaped(tokens, ("N", 16, C), ("N", 4, 4, C)) is None  # the class token is in the way


def test_tokens_survive_rows_and_heads():
    tokens = (atom("N", None), (Tokens(1, (Atom("y", 3), Atom("x", 5)), 0),), atom("C", C))
    rows = reshaped(tokens, ("N", 16, C), ("M", C))
    assert rows is not None
    assert reshaped(rows, ("M", C), ("N", 16, C)) == tokens
    heads = reshaped(tokens, ("N", 16, C), ("N", 16, 2, 2))
    assert heads == (*tokens[:2], (Atom("C", 2),), (Atom("C", 2),))


def test_inner_rows_that_become_channels_leave_a_coarser_grid():
    fine, coarse = (Atom("y", 2),), (Atom("y", 3, 2),)
    assert mixed([coarse], [fine]) == (coarse,)
    assert letters(mixed([fine], [coarse])) == set()


def test_attention_gives_each_token_to_its_query():
    cells = (Atom("y", 3), Atom("x", 5))
    q = (atom("N", None), atom("C", 2), cells, atom("C", 2))
    k = (atom("N", None), atom("C", 2), atom("C", 2), cells)
    dims = ("N", 2, 15, 15)
    weights = contracted(
        [Term("nhid", q, ("N", 2, 15, 2), False), Term("nhdj", k, ("N", 2, 2, 15), False)], "nhij", dims
    )
    assert weights is not None
    assert weights[2] == cells
    assert letters([weights[3]]) == set()
    assert layout_of(weights) is None  # which of the two would the map be of?
    out = contracted(
        [Term("nhij", weights, dims, False), Term("nhjd", q, ("N", 2, 15, 2), False)], "nhid", ("N", 2, 15, 2)
    )
    assert out == q


def test_a_weight_makes_channels_and_an_unknown_operand_nothing():
    a = Term("nxc", (atom("N", None), atom("x", 5), atom("C", 4)), ("N", 5, 4), False)
    for constant, letter in ((True, "C"), (False, "?")):
        found = contracted([a, Term("cd", None, (4, 3), constant)], "nxd", ("N", 5, 3))
        assert found == (*a.axes[:2], (Atom(letter, 3),))
    assert contracted([Term("cd", None, (4, 3), False)], "cd", (4, 3)) is None


def test_mixed_tokens_have_no_grid():
    """MLP-Mixer's first half: (T', T) @ (N, T, C)."""
    b = Term("nkj", (atom("N", None), (Atom("y", 3), Atom("x", 5)), atom("C", 4)), ("N", 15, 4), False)
    found = contracted([Term("ik", None, (7, 15), True), b], "nij", ("N", 7, 4))
    assert found is not None
    assert letters(found) == set()


def test_cuts():
    row = atom("x", 8)
    assert cut(row, 8, 6, 1, 1) == atom("x", 6)  # a border
    assert letters([cut(row, 8, 5, 3, 0)]) == set()  # the piece that a roll moves
    tokens: tuple[Tokens, ...] = (Tokens(2, (Atom("y", 3), Atom("x", 5)), 1),)
    assert cut(tokens, 18, 17, 1, 0) == (Tokens(1, (Atom("y", 3), Atom("x", 5)), 1),)
    assert cut(tokens, 18, 15, 2, 1) == (Atom("y", 3), Atom("x", 5))
    assert letters([cut(tokens, 18, 14, 3, 1)]) == set()  # a cell is gone
    assert cut(atom("C", 4), 4, 2, 2, 0) == atom("C", 2)
