"""Which files are whole: every cut one is not, and none that Pillow writes is taken for broken."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fula_fast.pipelines.decode.headers import whole

TURNED = Image.Exif()
TURNED[0x0112] = 6
TURNED[0x010F] = "a maker with a long name"


def _encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((24, 20)).convert(mode).save(out, kind, **options)
    return out.getvalue()


JPEG = {
    "plain": _encoded("JPEG"),
    "gray": _encoded("JPEG", "L"),
    "CMYK": _encoded("JPEG", "CMYK"),
    "progressive": _encoded("JPEG", progressive=True),
    "turned": _encoded("JPEG", exif=TURNED),
    "profile": _encoded("JPEG", icc_profile=b"x" * 300, comment=b"c"),
}
PNG = {mode: _encoded("PNG", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA")}
PNG |= {"profile": _encoded("PNG", icc_profile=b"x" * 300, dpi=(70, 70))}


@pytest.mark.parametrize("file", [*JPEG.values(), *PNG.values()], ids=[*JPEG, *PNG])
def test_what_pillow_writes_is_whole_and_no_beginning_of_it_is(file):
    assert whole(file) and whole(file + b"trailing bytes")
    assert not any(whole(file[:length]) for length in range(len(file)))


@pytest.mark.parametrize("file", PNG.values(), ids=PNG)
def test_every_changed_byte_of_a_png_is_noticed(file):
    for place in range(8, len(file)):
        assert not whole(file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :])


def test_exif_that_points_outside_itself_is_not_whole():
    file = JPEG["turned"]
    tag = file.index(b"\x01\x0f\x00\x02")  # big-endian: tag, type, count, offset
    far = file[: tag + 8] + (2000).to_bytes(4) + file[tag + 12 :]
    many = file[: tag + 4] + (2000).to_bytes(4) + file[tag + 8 :]
    assert whole(file) and not whole(far) and not whole(many)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_other_types_are_not_dalis(kind):
    assert not whole(_encoded(kind))


def test_a_png_with_exif_and_a_bomb_are_not_dalis():
    assert not whole(_encoded("PNG", exif=TURNED))
    file = JPEG["plain"]
    frame = file.index(b"\xff\xc0")
    assert not whole(file[: frame + 5] + b"\xff\xff\xff\xff" + file[frame + 9 :])
