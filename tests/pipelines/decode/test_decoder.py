"""Decoders: odd files, broken files, and agreement between Pillow and DALI."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from fula_fast.errors import FulaError
from fula_fast.pipelines.decode import headers
from fula_fast.pipelines.decode.decoder import decode_file
from fula_fast.pipelines.decode.folders import FolderIndex
from fula_fast.pipelines.decode.open_decoder import open_decoder
from fula_fast.pipelines.decode.trees import FileTree

DECODERS = ("pillow", "dali")
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return small.resize((45, 35), Image.Resampling.BICUBIC)


def _index(paths) -> FolderIndex:
    """Files of one folder as an index in the given order."""
    names = np.array([p.name.encode() for p in paths])
    tree = FileTree(paths[0].parent, names, frozenset())
    labels = np.zeros(len(paths), dtype=np.int64)
    return FolderIndex(tree, np.arange(len(paths)), labels, ("all",))


def _decode(decoder: str, paths, size, channels, on_error="raise"):
    return open_decoder(decoder)(_index(paths), range(len(paths)), size, channels, on_error)


def _saved(folder, image: Image.Image, name: str, **options):
    path = folder / name
    image.save(path, **options)
    return path


def _odd_files(folder, picture: Image.Image) -> dict[str, tuple]:
    """Name -> (path, the pixels expected, tolerance in levels)."""
    rgb = np.asarray(picture)
    gray = np.asarray(picture.convert("L"))
    palette = picture.quantize(16)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # shown turned by 90 degrees clockwise
    wide = (gray.astype(np.uint16) << 8) | gray
    alpha = picture.copy()
    alpha.putalpha(100)
    bits = picture.convert("1")
    three = [
        ("png", _saved(folder, picture, "a.png"), rgb, 0),
        ("jpeg", _saved(folder, picture, "a.jpg", quality=100, subsampling=0), rgb, 6),
        ("cmyk", _saved(folder, picture.convert("CMYK"), "c.jpg", quality=100), rgb, 6),
        ("palette", _saved(folder, palette, "p.png"), np.asarray(palette.convert("RGB")), 0),
        ("transparent", _saved(folder, alpha, "t.png"), rgb, 0),
        ("bmp", _saved(folder, picture, "a.bmp"), rgb, 0),
        ("webp", _saved(folder, picture, "a.webp", lossless=True), rgb, 0),
        (
            "turned",
            _saved(folder, picture, "e.jpg", quality=100, subsampling=0, exif=rotated),
            np.rot90(rgb, -1),
            6,
        ),
    ]
    one = [
        ("gray", _saved(folder, picture.convert("L"), "g.jpg", quality=100), gray, 3),
        ("gray-png", _saved(folder, picture.convert("L"), "g.png"), gray, 0),
        ("16-bit", _saved(folder, Image.fromarray(wide), "w.png"), gray, 0),
        ("1-bit", _saved(folder, bits, "b.png"), np.asarray(bits) * np.uint8(255), 0),
    ]
    one = [(n, p, np.repeat(pixels[..., None], 3, -1), t) for n, p, pixels, t in one]
    return {name: (path, pixels, tolerance) for name, path, pixels, tolerance in three + one}


@pytest.mark.parametrize("decoder", DECODERS)
def test_odd_files_become_upright_rgb(tmp_path, picture, decoder):
    files = _odd_files(tmp_path, picture)
    decoded = _decode(decoder, [path for path, _, _ in files.values()], None, 3)
    for (name, (_, expected, tolerance)), pixels in zip(files.items(), decoded, strict=True):
        assert pixels.dtype == np.uint8 and pixels.shape == expected.shape, name
        assert np.abs(pixels.astype(int) - expected).max() <= tolerance, name


def test_both_decoders_give_the_same_pixels(tmp_path, picture):
    paths = [path for path, _, _ in _odd_files(tmp_path, picture).values()]
    ours = [_decode(d, paths, None, 3) for d in DECODERS]
    assert all(np.array_equal(a, b) for a, b in zip(*ours, strict=True))


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_channel_is_luma(tmp_path, picture, decoder):
    path = _saved(tmp_path, picture, "a.png")
    (pixels,) = _decode(decoder, [path], None, 1)
    assert pixels.shape == (35, 45, 1)
    assert np.abs(pixels[..., 0] - np.asarray(picture) @ LUMA).max() <= 0.51
    assert np.array_equal(pixels[..., 0], np.asarray(picture.convert("L")))


@pytest.mark.parametrize("decoder", DECODERS)
def test_resizing_takes_the_central_square(tmp_path, decoder):
    """A wide image whose middle is white and whose sides are black."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255
    path = _saved(tmp_path, Image.fromarray(pixels), "w.png")
    tall = _saved(tmp_path, Image.fromarray(pixels.transpose(1, 0, 2)), "t.png")
    for image in _decode(decoder, [path, tall], 10, 3):
        assert image.shape == (10, 10, 3)
        assert image[1:-1, 1:-1].min() >= 250  # the filter sees one pixel beyond the edge
        assert image.min() >= 150


def test_resized_pixels_agree_within_a_few_levels(tmp_path, picture):
    path = _saved(tmp_path, picture, "a.png")
    ours = [_decode(d, [path], 16, 3)[0].astype(int) for d in DECODERS]
    assert np.abs(ours[0] - ours[1]).max() <= 20
    assert np.abs(ours[0] - ours[1]).mean() <= 1


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_huge_image_is_shrunk(tmp_path, decoder):
    pixels = np.full((6000, 8000, 3), 77, dtype=np.uint8)
    path = _saved(tmp_path, Image.fromarray(pixels), "h.jpg")
    (image,) = _decode(decoder, [path], 8, 3)
    assert image.shape == (8, 8, 3) and np.abs(image.astype(int) - 77).max() <= 1


def test_files_that_dali_does_not_take_are_pillows(tmp_path, picture):
    """Beside JPEG and PNG, in their places; among them what DALI cannot decode."""
    palette = picture.quantize(16)
    floats = Image.fromarray(np.full((35, 45), 77 / 255, dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [
        _saved(tmp_path, picture, "a.png"),
        _saved(tmp_path, palette, "p.gif"),
        _saved(tmp_path, picture.convert("CMYK"), "c.tiff"),
        _saved(tmp_path, picture, "b.jpg"),
        _saved(tmp_path, floats, "f.tiff"),
        _saved(tmp_path, picture, "turned.png", exif=exif),
        _saved(tmp_path, picture, "p.ppm"),
    ]
    for size in (None, 16):
        ours = _decode("dali", paths, size, 3)
        expected = _decode("pillow", paths, size, 3)
        for path, image, other in zip(paths, ours, expected, strict=True):
            dalis = path.name in ("a.png", "b.jpg")  # which it resizes in its own way
            assert image.shape == other.shape
            assert np.array_equal(image, other) or (dalis and size), path.name


def test_the_name_tells_which_files_are_dalis():
    """An older cache, under `dali{version}-cpu`, holds other pixels of some files."""
    name = open_decoder("dali").name
    assert re.fullmatch(rf"dali[\d.]+-cpu-rule{headers.RULE}", name) and headers.RULE > 1


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_failure_of_dali_is_no_broken_image(tmp_path, picture, monkeypatch, on_error):
    paths = [_saved(tmp_path, picture, f"{i}.png") for i in range(5)]

    def fail(*_):
        raise RuntimeError("Critical error in pipeline:\n\ncudaErrorMemoryAllocation\nmore")

    monkeypatch.setattr("fula_fast.pipelines.decode.dali.DaliDecoder._outputs", fail)
    with pytest.raises(FulaError, match="DALI failed on '.*0.png', which can be read") as error:
        _decode("dali", paths, 8, 3, on_error)
    assert "\n" not in str(error.value) and "decoder = 'pillow'" in str(error.value)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("size", [None, 16])
def test_single_files_that_dali_rejects_are_pillows(
    tmp_path, picture, without_checksum, caplog, size, on_error
):
    paths = [_saved(tmp_path, picture, f"{i}.png") for i in range(7)]
    for i in (2, 5):
        paths[i] = without_checksum(_saved(tmp_path, picture, f"odd{i}.png"))
    index = _index(paths)
    decoder = open_decoder("dali")
    with pytest.raises(RuntimeError):
        decoder._outputs([index.read(2)], size)
    decoder._pipelines.clear()
    for _ in range(2):  # the second time nothing fails, and nothing is said
        images = decoder(index, range(7), size, 3, on_error)
        pillows = _decode("pillow", paths, size, 3)
        assert all(np.array_equal(images[i], pillows[i]) for i in (2, 5))
        assert all(
            np.array_equal(image, images[0]) for i, image in enumerate(images) if i not in (2, 5)
        )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("is left to Pillow" in text for text in said)
    assert "odd2.png" in said[0] and "odd5.png" in said[1]


def test_many_files_that_dali_rejects_are_a_failure(
    tmp_path, picture, without_checksum, monkeypatch
):
    monkeypatch.setattr("fula_fast.pipelines.decode.dali._MOST_REJECTED", 2)
    paths = [without_checksum(_saved(tmp_path, picture, f"odd{i}.png")) for i in range(3)]
    assert all(np.array_equal(image, picture) for image in _decode("dali", paths[:2], None, 3))
    with pytest.raises(FulaError, match="DALI failed on '.*odd2.png'.*use decoder = 'pillow'"):
        _decode("dali", paths, None, 3)


@pytest.mark.parametrize(
    "text",
    ["cudaErrorMemoryAllocation", "CUDA allocation failed", "out of memory", "std::bad_alloc"],
)
def test_a_file_for_which_memory_does_not_suffice_is_a_failure(
    tmp_path, picture, monkeypatch, text
):
    paths = [
        _saved(tmp_path, picture, "a.png"),
        _saved(tmp_path, picture.resize((90, 70)), "b.png"),
    ]
    decode, large = open_decoder("dali").__class__._outputs, paths[1].stat().st_size

    def all_but_large(self, files, size):
        if any(len(file) == large for file in files):
            raise RuntimeError(f"Critical error in pipeline:\nencountered:\n\n{text}\nmore")
        return decode(self, files, size)

    monkeypatch.setattr("fula_fast.pipelines.decode.dali.DaliDecoder._outputs", all_but_large)
    with pytest.raises(FulaError, match=f"DALI failed on '.*b.png'.*{text}"):
        _decode("dali", paths, None, 3)


def test_what_dali_can_only_do_in_parts_is_done(tmp_path, picture, monkeypatch):
    paths = [_saved(tmp_path, picture, f"{i}.png") for i in range(5)]
    whole = open_decoder("dali").__class__._outputs

    def small_only(self, files, size):
        if len(files) > 2:
            raise RuntimeError("out of memory")
        return whole(self, files, size)

    monkeypatch.setattr("fula_fast.pipelines.decode.dali.DaliDecoder._outputs", small_only)
    assert all(np.array_equal(image, picture) for image in _decode("dali", paths, None, 3))


def test_a_gpu_decoder_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FulaError, match="decoder = 'dali-gpu' needs a CUDA device, there is none"):
        open_decoder("dali-gpu")


def _broken_files(folder, picture) -> list:
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG")
    png = io.BytesIO()
    picture.save(png, "PNG")
    contents = {
        "half.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "tail.jpg": jpeg.getvalue()[:-3],
        "half.png": png.getvalue()[: len(png.getvalue()) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<html>not found</html>",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents] + [folder / "missing.jpg"]


@pytest.mark.parametrize("decoder", DECODERS)
def test_broken_files_are_named(tmp_path, picture, decoder):
    for path in _broken_files(tmp_path, picture):
        with pytest.raises(FulaError, match=f"image '.*{path.name}' cannot be read") as error:
            _decode(decoder, [path], 8, 3)
        assert "\n" not in str(error.value) and "on_error = 'skip'" in str(error.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_broken_files_are_skipped_in_their_places(tmp_path, picture, decoder):
    good = _saved(tmp_path, picture, "good.png")
    mixed = [good]
    for path in _broken_files(tmp_path, picture):
        mixed += [path, good]
    images = _decode(decoder, mixed, 8, 3, "skip")
    expected = _decode(decoder, [good], 8, 3)[0]
    assert all(np.array_equal(image, expected) for image in images[::2])
    assert all(image is None for image in images[1::2])


def test_unknown_decoder():
    with pytest.raises(FulaError, match="unknown decoder 'pilow'; did you mean 'pillow'"):
        open_decoder("pilow")


def test_a_bomb_is_refused(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FulaError, match="cannot be read"):
        decode_file(_index([_saved(tmp_path, picture, "a.png")]), 0, 8, 3)


def test_without_dali_the_install_command_is_named(monkeypatch):
    monkeypatch.setattr("fula_fast.pipelines.decode.dali.find_spec", lambda name: None)
    assert open_decoder("auto").name.startswith("pillow")
    with pytest.raises(FulaError, match=r"pip install 'fula-fast\[dali\]'"):
        open_decoder("dali")


RAMP = np.linspace(0, 1, 80, dtype=np.float32).reshape(8, 10)


def _wide(folder, kind: str):
    """A ramp from black to white as a file of more than 8 bits."""
    if kind == "float-tiff":
        return _saved(folder, Image.fromarray(RAMP), "f.tiff")
    numbers = np.rint(RAMP * 65535).astype(np.uint16)
    if kind == "big-endian-tiff":
        image = Image.frombytes("I;16B", (10, 8), numbers.astype(">u2").tobytes())
        return _saved(folder, image, "b.tiff")
    if kind == "ppm":
        path = folder / "w.pgm"
        path.write_bytes(b"P5 10 8 65535\n" + numbers.astype(">u2").tobytes())
        return path
    return _saved(folder, Image.fromarray(numbers), f"w.{kind}")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["float-tiff", "big-endian-tiff", "tiff", "png", "ppm"])
def test_more_than_eight_bits_are_scaled_to_white(tmp_path, kind, decoder):
    (pixels,) = _decode(decoder, [_wide(tmp_path, kind)], None, 1)
    assert np.abs(pixels[..., 0].astype(int) - np.rint(RAMP * 255)).max() <= 1
    assert pixels.min() == 0 and pixels.max() == 255


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "numbers, words",
    [
        (RAMP * 255, "floats run from 0 to 255, not within 0 to 1"),
        (RAMP - 0.5, "floats run from -0.5 to 0.5"),
        (RAMP * np.nan, "floats run from nan to nan"),
        ((RAMP * 255).astype(np.int32), "32-bit integers, 0 to 255, have no known white"),
        ((RAMP * 2**30).astype(np.int32), "32-bit integers, 0 to 1073741824, have no known white"),
    ],
)
def test_numbers_without_a_known_white_are_refused(tmp_path, numbers, words, decoder):
    path = _saved(tmp_path, Image.fromarray(numbers), "n.tiff")
    with pytest.raises(FulaError, match=rf"n.tiff' cannot be read \(its {words}"):
        _decode(decoder, [path], None, 3)
    assert _decode(decoder, [path], None, 3, "skip") == [None]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA"])
def test_every_mode_of_eight_bits_is_converted(tmp_path, picture, mode):
    path = _saved(tmp_path, picture.convert(mode), "m.tiff")
    (pixels,) = _decode("pillow", [path], None, 3)
    expected = np.asarray(picture.convert(mode).convert("RGB"), dtype=int)
    assert np.abs(pixels - expected).max() <= 1
