import numpy as np
import pytest

from onnxcam import postprocess
from onnxcam.errors import InputError, TensorError
from onnxcam.postprocess import fuse, heatmaps, resize, scale

RNG = np.random.default_rng(5)


def test_scale_by_hand():
    maps = np.array([[[1, 2], [3, 5]], [[-4, -4], [-3, -2]]])
    np.testing.assert_allclose(scale(maps), [[[0, 0.25], [0.5, 1]], [[0, 0], [0.5, 1]]], atol=1e-6)


def test_scale_adds_epsilon_to_the_range():
    assert scale([[[0, 1e-7]]])[0, 0, 1] == pytest.approx(0.5)


def test_scale_leaves_its_argument_alone():
    maps = RNG.normal(size=(2, 3, 3)).astype(np.float32)
    kept = maps.copy()
    for function in (scale, lambda m: resize(m, (3, 3)), lambda m: heatmaps([m], (3, 3))):
        result = function(maps)
        np.testing.assert_array_equal(maps, kept)
        assert not np.shares_memory(result, maps)
        heatmaps([maps], (3, 3), rectify=False)
        np.testing.assert_array_equal(maps, kept)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("rectify", [True, False])
def test_a_map_without_contrast_is_exactly_zero(value, rectify):
    for how in ("mean", "max", "product"):
        maps = heatmaps([np.full((2, 7, 7), value)] * 2, (20, 30), rectify, how)
        np.testing.assert_array_equal(maps, np.zeros((2, 20, 30), np.float32))


def test_an_empty_map_beside_a_full_one():
    maps = np.stack([np.zeros((3, 3)), RNG.random((3, 3))])
    result = heatmaps([maps], (9, 9))
    assert not result[0].any()
    assert result[1].max() == pytest.approx(1)


def test_rectify_drops_negative_evidence():
    maps = np.array([[[-1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(heatmaps([maps], (2, 2)), [[[0, 0], [0, 1]]], atol=1e-6)
    np.testing.assert_allclose(heatmaps([maps], (2, 2), rectify=False), [[[0, 0.5], [0.5, 1]]], atol=1e-6)
    assert not heatmaps([-np.ones((1, 2, 2))], (4, 4)).any()


def reference_resize(image, height, width):
    """Linear interpolation between cell centres, edges repeated, in float64."""

    def matrix(n_out, n_in):
        weights = np.zeros((n_out, n_in))
        for i in range(n_out):
            at = min(max((i + 0.5) * n_in / n_out - 0.5, 0), n_in - 1)
            low = min(int(at), n_in - 2) if n_in > 1 else 0
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, n_in - 1)] += at - low
        return weights

    return matrix(height, image.shape[0]) @ image @ matrix(width, image.shape[1]).T


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((7, 7), (224, 224)),
        ((7, 5), (32, 40)),
        ((1, 1), (6, 4)),
        ((3, 1), (5, 9)),
        ((8, 8), (5, 3)),
        ((4, 6), (1, 1)),
    ],
)
def test_resize_is_linear_with_half_pixel_centres(small, large):
    maps = RNG.random((3, *small))
    expected = np.stack([reference_resize(m, *large) for m in maps])
    result = resize(maps, large)
    assert result.dtype == np.float32
    assert result.shape == (3, *large)
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_resize_takes_views():
    maps = RNG.random((2, 6, 8)).astype(np.float32)
    view = maps[:, ::2, ::-1]
    np.testing.assert_array_equal(resize(view, (9, 9)), resize(view.copy(), (9, 9)))
    np.testing.assert_array_equal(resize(view, (3, 8)), view)


def test_fuse():
    one, two = np.array([[[0.0, 0.5]]]), np.array([[[1.0, 0.25]]])
    np.testing.assert_array_equal(fuse([one, two]), [[[0.5, 0.375]]])
    np.testing.assert_array_equal(fuse([one, two], "max"), [[[1.0, 0.5]]])
    np.testing.assert_array_equal(fuse([one, two], "product"), [[[0.0, 0.125]]])
    np.testing.assert_array_equal(fuse([one], "product"), one)
    np.testing.assert_allclose(fuse([one, two], "product:pgc"), [[[0.0, 0.0]]])
    np.testing.assert_array_equal(two, [[[1.0, 0.25]]])


def test_layers_are_scaled_enlarged_fused_and_scaled_again():
    layers = [RNG.normal(size=(2, 3, 4)), 100 * RNG.normal(size=(2, 6, 8))]
    each = [scale(resize(scale(np.maximum(m, 0)), (12, 16))) for m in layers]
    for how, combine in [("mean", np.mean), ("max", np.max), ("product", np.prod)]:
        enlarged = [resize(scale(np.maximum(m, 0)), (12, 16)) for m in layers]
        expected = scale(combine(enlarged, axis=0))
        np.testing.assert_allclose(heatmaps(layers, (12, 16), fuse=how), expected, atol=1e-6)
    np.testing.assert_allclose(heatmaps(layers[:1], (12, 16)), each[0], atol=1e-6)
    np.testing.assert_allclose(
        heatmaps(layers, (12, 16), fuse="product:pgc"), scale(each[0] * each[1]), atol=1e-6
    )


def test_a_fused_product_from_a_published_example():
    first, second = np.array([[[0, 1], [2, 3]]]), np.array([[[3, 2], [1, 0]]])
    product = fuse([scale(first), scale(second)], "product")
    np.testing.assert_allclose(product, [[[0, 2 / 9], [2 / 9, 0]]], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_heatmaps_are_float32_in_0_to_1(dtype):
    maps = heatmaps([RNG.normal(size=(4, 7, 7)).astype(dtype)], (32, 40))
    assert maps.dtype == np.float32
    assert maps.shape == (4, 32, 40)
    assert maps.min() >= 0
    assert maps.max() <= 1
    np.testing.assert_allclose(maps.max((1, 2)), 1, atol=1e-6)


def test_samples_are_scaled_on_their_own():
    maps = RNG.random((2, 5, 5))
    maps[1] *= 1e6
    together = heatmaps([maps], (10, 10))
    np.testing.assert_array_equal(together[:1], heatmaps([maps[:1]], (10, 10)))


def test_no_image_no_heatmap():
    assert heatmaps([np.zeros((0, 7, 7))], (8, 8)).shape == (0, 8, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_map_that_is_not_finite_is_refused(value):
    maps = np.zeros((3, 2, 2))
    maps[1, 0, 0] = value
    message = (
        r"^The map of image 1 of the batch is not finite: activations or gradients of the model "
        r"overflow\. A float16 model may need its float32 version\.$"
    )
    for function in (scale, lambda m: heatmaps([m], (4, 4)), lambda m: fuse([m, m])):
        with pytest.raises(TensorError, match=message):
            function(maps)


def test_a_range_beyond_float32_is_refused():
    with pytest.raises(TensorError, match=r"^The map of image 0 of the batch is not finite"):
        scale([[[-3e38, 3e38]]])


ONES = np.ones((1, 2, 2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: heatmaps([ONES[0, 0]], (4, 4)),
            "Maps have the shape (batch, height, width), (batch, length) or (batch, depth, height, width), "
            "not (2,).",
        ),
        (
            lambda: scale(np.zeros((1, 0, 2))),
            "Maps have the shape (batch, height, width), (batch, length) or (batch, depth, height, width), "
            "not (1, 0, 2).",
        ),
        (lambda: heatmaps([], (4, 4)), "There is no layer's map to fuse."),
        (
            lambda: heatmaps([ONES], (4, 4), fuse="maxx"),
            "No fusion 'maxx'. Nearest: 'max', 'mean'. There are: mean, max, product, product:pgc.",
        ),
        (
            lambda: fuse([ONES, np.ones((1, 2, 3))]),
            "Maps of equal shape can be fused, not of (1, 2, 2), (1, 2, 3).",
        ),
        (lambda: resize(ONES, (0, 4)), "The size of a heatmap is at least 1×1, not 0×4."),
        (lambda: resize(ONES, 4), "The size of a heatmap is (height, width), not 4."),
        (lambda: resize(ONES, (4, 4, 4)), "The size of a heatmap is (height, width), not (4, 4, 4)."),
    ],
)
def test_messages(call, text):
    with pytest.raises(InputError) as raised:
        call()
    assert str(raised.value) == text


def test_the_epsilon_is_pytorch_grad_cams():
    assert postprocess.EPSILON == 1e-7
