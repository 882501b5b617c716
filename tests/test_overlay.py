import cv2
import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.overlay import Row, colormaps, colourize, drawable, overlay, sheet

RNG = np.random.default_rng(11)
PHOTO = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
HEAT = RNG.random((40, 60), dtype=np.float32)
HOT, COLD = np.ones((40, 60), np.float32), np.zeros((40, 60), np.float32)


def test_colours_are_rgb():
    # OpenCV's jet runs from dark blue to dark red.
    np.testing.assert_array_equal(colourize(COLD)[0, 0], [0, 0, 128])
    np.testing.assert_array_equal(colourize(HOT)[0, 0], [128, 0, 0])


@pytest.mark.parametrize("name", colormaps())
def test_every_colour_map_is_opencvs(name):
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    index = (255 * ramp).astype(np.uint8)
    expected = cv2.applyColorMap(index, getattr(cv2, f"COLORMAP_{name.upper()}"))[..., ::-1]
    for spelling in (name, name.upper(), f"COLORMAP_{name.upper()}"):
        np.testing.assert_array_equal(colourize(ramp, spelling), expected)


def test_a_colour_map_by_opencvs_constant():
    np.testing.assert_array_equal(colourize(HEAT, cv2.COLORMAP_TURBO), colourize(HEAT, "turbo"))


def test_opencvs_colour_maps_are_all_there():
    assert {"jet", "viridis", "turbo", "twilight_shifted"} <= {*colormaps()}
    assert len(colormaps()) >= 22


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_blend_is_add_weighted(alpha):
    expected = cv2.addWeighted(PHOTO, 1 - alpha, colourize(HEAT), alpha, 0)
    result = overlay(PHOTO, HEAT, alpha)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_alpha_runs_from_photo_to_colours():
    np.testing.assert_array_equal(overlay(PHOTO, HEAT, 0), PHOTO)
    np.testing.assert_array_equal(overlay(PHOTO, HEAT, 1, "magma"), colourize(HEAT, "magma"))


def test_show_cam_by_hand():
    photo = np.full((1, 2, 3), 51, np.uint8)  # 0.2
    heat = np.array([[0.0, 1.0]], np.float32)  # jet: (0, 0, 128) and (128, 0, 0), 128/255 = 0.502
    # The sums are 0.1 and 0.1 + 0.251 = 0.351; 0.1 / 0.351 of 255 is 72.6, truncated.
    np.testing.assert_array_equal(overlay(photo, heat, style="show_cam"), [[[72, 72, 255], [255, 72, 72]]])


def test_show_cam_of_a_black_photo_without_heat():
    black = np.zeros((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(overlay(black, HEAT[:4, :4], 0, style="show_cam"), black)


def test_a_small_heatmap_is_enlarged_to_the_photo():
    small = RNG.random((7, 5)).astype(np.float32)
    large = cv2.resize(small, (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(overlay(PHOTO, small), overlay(PHOTO, large))


@pytest.mark.parametrize("style", ["blend", "show_cam"])
def test_what_the_model_never_saw_is_grey_dark_and_without_heat(style):
    seen = np.ones((40, 60), bool)
    seen[:, :10] = False
    result = overlay(PHOTO, HOT, seen=seen, style=style)
    np.testing.assert_array_equal(result[seen], overlay(PHOTO, HOT, style=style)[seen])
    unseen = result[~seen]
    assert (unseen == unseen[:, :1]).all()  # grey
    assert (unseen[:, 0] <= 0.5 * cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)[~seen]).all()
    np.testing.assert_array_equal(unseen, overlay(PHOTO, COLD, seen=seen, style=style)[~seen])


def test_all_seen_changes_nothing():
    np.testing.assert_array_equal(overlay(PHOTO, HEAT, seen=np.ones((40, 60), bool)), overlay(PHOTO, HEAT))


def test_arguments_are_left_alone():
    photo, heat, seen = PHOTO.copy(), HEAT.copy(), HEAT > 0.5
    kept = seen.copy()
    for style in ("blend", "show_cam"):
        result = overlay(photo, heat, 0, seen=seen, style=style)
        assert not np.shares_memory(result, photo)
    sheet([Row(photo, heat, "a", 1.0, seen)])
    for now, before in [(photo, PHOTO), (heat, HEAT), (seen, kept)]:
        np.testing.assert_array_equal(now, before)


def test_read_only_and_strided_arguments():
    photo, heat = PHOTO[:, ::-1], HEAT[::-1]
    expected = overlay(photo.copy(), heat.copy())
    photo.flags.writeable = heat.flags.writeable = False
    np.testing.assert_array_equal(overlay(photo, heat), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_heatmap(dtype):
    heat = np.array([[0, 0.5, 1]], dtype)
    np.testing.assert_array_equal(colourize(heat), colourize(heat.astype(np.float32)))


def test_a_pixel_photo():
    assert overlay(PHOTO[:1, :1], np.ones((7, 7), np.float32)).shape == (1, 1, 3)


MAPS = ", ".join(colormaps())
PHOTO_TEXT = (
    "The photo is a uint8 RGB array (height, width, 3), not {}. "
    "One with floats from 0 to 1 becomes it by (255 * image).astype('uint8')."
)
RANGE_TEXT = "A heatmap's values lie from 0 to 1, not from {}: onnxcam.postprocess.scale brings maps there."
REFUSED = [
    ({"image": PHOTO / 255}, PHOTO_TEXT.format("float64 (40, 60, 3)")),
    ({"image": PHOTO[..., 0]}, PHOTO_TEXT.format("uint8 (40, 60)")),
    ({"image": PHOTO[..., :2]}, PHOTO_TEXT.format("uint8 (40, 60, 2)")),
    ({"image": PHOTO[:0]}, PHOTO_TEXT.format("uint8 (0, 60, 3)")),
    ({"heatmap": PHOTO[..., 0]}, "A heatmap is a float array (height, width), not uint8 (40, 60)."),
    ({"heatmap": HEAT[None]}, "A heatmap is a float array (height, width), not float32 (1, 40, 60)."),
    ({"heatmap": HEAT[:0]}, "A heatmap is a float array (height, width), not float32 (0, 60)."),
    ({"heatmap": 255 * HOT}, RANGE_TEXT.format("255 to 255")),
    ({"heatmap": HOT - 1.5}, RANGE_TEXT.format("-0.5 to -0.5")),
    ({"heatmap": HOT * np.nan}, RANGE_TEXT.format("nan to nan")),
    ({"alpha": 1.5}, "alpha is a number from 0 to 1, not 1.5."),
    ({"alpha": -0.1}, "alpha is a number from 0 to 1, not -0.1."),
    ({"alpha": float("nan")}, "alpha is a number from 0 to 1, not nan."),
    ({"alpha": "half"}, "alpha is a number from 0 to 1, not 'half'."),
    ({"style": "blent"}, "No style 'blent'. Nearest: 'blend'. There are: blend, show_cam."),
    ({"colormap": "virids"}, f"No colour map 'virids'. Nearest: 'viridis', 'cividis'. There are: {MAPS}."),
    ({"colormap": 99}, f"No colour map 99. There are: {MAPS}."),
    (
        {"seen": np.ones((2, 2), bool)},
        "seen is a bool array of the photo's size (40, 60), not bool (2, 2).",
    ),
    ({"seen": HOT}, "seen is a bool array of the photo's size (40, 60), not float32 (40, 60)."),
]


@pytest.mark.parametrize(
    ("changed", "text"), REFUSED, ids=lambda v: next(iter(v)) if isinstance(v, dict) else ""
)
def test_messages(changed, text):
    with pytest.raises(InputError) as raised:
        overlay(**{"image": PHOTO, "heatmap": HEAT} | changed)
    assert str(raised.value) == text
    rest = {k: v for k, v in changed.items() if k not in ("image", "heatmap", "seen")}
    row = {"image": PHOTO, "heatmap": HEAT} | {k: v for k, v in changed.items() if k not in rest}
    with pytest.raises(InputError):
        sheet([Row(**row)], **rest)


def test_an_empty_sheet_is_refused():
    with pytest.raises(InputError, match=r"^A sheet needs at least one row\.$"):
        sheet([])


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / width, y * 255 / height, 0 * x + 90], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "panel"),
    [
        ((300, 400), (300, 400)),  # as it is
        ((30, 20), (256, 171)),  # tiny: enlarged
        ((3000, 2000), (512, 341)),  # huge: reduced
        ((1, 1), (256, 256)),
        ((2, 2000), (1, 512)),  # at least one pixel
    ],
)
def test_panels_of_a_sheet(size, panel):
    photo = smooth(*size)
    result = sheet([Row(photo, np.ones((7, 7), np.float32))])
    height, column = panel[0], max(panel[1], 128)
    assert result.shape == (8 + height + 8, 3 * column + 4 * 8, 3)
    left = 8 + (column - panel[1]) // 2
    starts = [left, left + column + 8, left + 2 * (column + 8)]
    first, second, third = (result[8 : 8 + height, s : s + panel[1]].astype(int) for s in starts)
    assert np.abs(first.mean((0, 1)) - photo.mean((0, 1))).max() < 3
    np.testing.assert_array_equal(second, np.broadcast_to([128, 0, 0], second.shape))
    assert np.abs(third - (first + second) / 2).max() <= 0.5
    assert (result[:8] == 255).all()


def test_rows_share_one_width_and_one_scale():
    rows = [Row(smooth(400, 300), HEAT), Row(smooth(100, 100), HEAT), Row(smooth(30, 40), HEAT)]
    result = sheet(rows)
    assert result.shape == (400 + 400 + 300 + 3 * 16, 3 * 400 + 4 * 8, 3)


def ink(label, score=None, photo=None):
    """The caption's band alone."""
    photo = smooth(256, 256) if photo is None else photo
    return sheet([Row(photo, HEAT, label, score)])[8 + 256 :]


def test_name_and_score_are_printed():
    empty, name, both = ink(""), ink("tabby"), ink("tabby", 0.953)
    assert (empty == 255).all()
    dark = (name < 100).all(-1)
    assert dark.sum() > 60
    red = (both[..., 0].astype(int) - both[..., 1]) > 100
    assert red.sum() > 60
    assert np.nonzero(red)[1].min() > np.nonzero(dark)[1].max()  # right of the name
    assert not (ink("tabby", 0.953) == ink("tabby", 12.3)).all()
    assert not (ink("tabby") == ink("tabbies")).all()


def test_a_long_name_is_cut_and_the_score_is_not():
    narrow = smooth(256, 40)
    band = ink("a very long name of a class " * 10, -12.3456, narrow)
    red = (band[..., 0].astype(int) - band[..., 1]) > 100
    assert red.sum() > 60
    assert (band[:, -8:] == 255).all()
    short = ink("", -12.3456, narrow)
    assert red.sum() == ((short[..., 0].astype(int) - short[..., 1]) > 100).sum()


def test_a_score_that_is_not_finite_is_printed():
    assert (ink("x", float("nan")) < 255).any()


@pytest.mark.parametrize(
    ("text", "ascii_only", "unicode"),
    [
        ("tabby, tabby cat", "tabby, tabby cat", "tabby, tabby cat"),
        ("Café Ñandú Åse", "Cafe Nandu Ase", "Café Ñandú Åse"),
        ("Straße – “x” ½", 'Strasse - "x" 1/2', "Straße – “x” ½"),
        ("猫 cat", "? cat", "猫 cat"),
        ("two\nlines\tand  more ", "two lines and more", "two lines and more"),
        ("bell\x07", "bell?", "bell?"),
        ("", "", ""),
    ],
)
def test_text_that_opencv_can_draw(text, ascii_only, unicode):
    assert drawable(text, unicode=False) == ascii_only
    assert drawable(text, unicode=True) == unicode


def test_a_name_in_any_script_makes_a_sheet():
    for name in ("猫", "кот", "قطة", "🐈", "\x00", "a" * 3000):
        assert ink(name, 0.5).shape == ink("cat", 0.5).shape
