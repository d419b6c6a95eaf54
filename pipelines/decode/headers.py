"""Whether an encoded JPEG or PNG file is whole, told from its structure without decoding it.

DALI must see no other file. Where its image decoder cannot parse a header it raises while its
threads still work on the batch's memory, and the process may end in a segmentation fault (DALI 2.4,
32 files and more in a run, of one type or of several); Exif data that points outside itself may
overwrite memory. A file that is whole here and yet broken in its compressed data is an ordinary
error there.
"""

from __future__ import annotations

import zlib

RULE = 3
"""The version of how files are read: a higher number whenever the pixels of some file change, as
another decoder reads it, or Pillow's are converted otherwise. Decoders have it in their names, and
so the cache in its key. 1 (not in the name) left every file to DALI; 2 clipped floats."""

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MOST_PIXELS = 128 << 20  # what is larger may be a bomb; Pillow has the say on it


def _segment(marker: int) -> str | None:
    """What a JPEG's marker begins; None: nothing that belongs before a scan, or that
    DALI decodes."""
    if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive; Huffman coded
        return "frame"
    tables = marker in (0xC4, 0xC8, 0xCC)
    if marker in (0x00, 0x01, 0xFF) or (0xC3 <= marker <= 0xD9 and not tables):
        return None
    return {0xDA: "scan", 0xE1: "application 1"}.get(marker, "other")


_SEGMENTS = tuple(map(_segment, range(256)))


def whole(file: bytes) -> bool:
    """Whether `file` is a JPEG of 8 bits or a PNG, of usual size, with all its parts."""
    if file[:2] == b"\xff\xd8":
        return _whole_jpeg(file)
    return file[:8] == _PNG and _whole_png(file)


def _whole_jpeg(file: bytes) -> bool:
    """Segments up to the first scan, with a frame among them; somewhere behind, the end marker."""
    place, last, framed = 2, len(file) - 4, False
    while place <= last:
        length = file[place + 2] << 8 | file[place + 3]
        what = _SEGMENTS[file[place + 1]]
        if file[place] != 0xFF or length < 2 or what is None:
            return False
        end = place + 2 + length
        if what == "scan":
            return framed and file.find(b"\xff\xd9", end) >= 0
        if what == "frame":
            if framed or not _usual_frame(file[place + 4 : end]):
                return False
            framed = True
        elif what == "application 1" and not _sound_application(file[place + 4 : end]):
            return False
        place = end
    return False


def _usual_frame(frame: bytes) -> bool:
    """Precision, height, width, and three bytes for each component."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3, 4):
        return False
    return len(frame) == 6 + 3 * frame[5] and _usual_size(frame[3:5], frame[1:3])


def _sound_application(block: bytes) -> bool:
    """Whether it is no Exif, or all values of its first directory lie within it."""
    if block[:6] != b"Exif\0\0":
        return True
    tiff = block[6:]
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return False

    def number(place: int, size: int) -> int:
        return int.from_bytes(tiff[place : place + size], order)

    first = number(4, 4)
    end = first + 2 + 12 * number(first, 2)
    if first < 8 or end > len(tiff):
        return False
    for entry in range(first + 2, end, 12):
        size = number(entry + 4, 4) * _EXIF_SIZES.get(number(entry + 2, 2), len(tiff))
        if size > 4 and number(entry + 8, 4) + size > len(tiff):
            return False
    return True


def _whole_png(file: bytes) -> bool:
    """Chunks with right checksums: a header, then image data, up to the end chunk."""
    place, header, data = 8, False, False
    while place + 12 <= len(file):
        name = file[place + 4 : place + 8]
        end = place + 8 + int.from_bytes(file[place : place + 4])
        if end + 4 > len(file) or header != (name != b"IHDR"):
            return False
        if zlib.crc32(memoryview(file)[place + 4 : end]) != int.from_bytes(file[end : end + 4]):
            return False
        if name == b"eXIf" or (name == b"IHDR" and not _usual_header(file[place + 8 : end])):
            return False
        if name == b"IEND":
            return data
        header, data, place = True, data or name == b"IDAT", end + 4
    return False


def _usual_header(header: bytes) -> bool:
    """Width, height, bit depth, colour type, and three bytes for methods."""
    if len(header) != 13 or header[8] not in _DEPTHS.get(header[9], ()):
        return False
    return header[10:12] == b"\0\0" and header[12] < 2 and _usual_size(header[:4], header[4:8])


def _usual_size(width: bytes, height: bytes) -> bool:
    return 0 < int.from_bytes(width) * int.from_bytes(height) <= _MOST_PIXELS
