"""The main colour of a drawing in a word, where one colour is plainly it.

Colours are compared in OKLab (Bjoern Ottosson, "A perceptual color space for image processing", 2020), whose
axes are lightness, green-red and blue-yellow; the words are the eleven basic colour terms of English (Berlin
and Kay, 1969). Every pixel gets the word of the nearest example in `EXAMPLES`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXAMPLES = {
    "red": "f44336 e53935 d32f2f b71c1c ff5a4a dd2e44 ea5a47 c1272d f8312f ed4c5c f8305c e8335a be1931 "
    "ff1a4b f0513a",
    "orange": "ff9800 fb8c00 f57c00 ef6c00 ff822d f4900c ff8a50 f29a2e f1b31c e27022 ff6b1d",
    "yellow": "ffeb3b fdd835 fbc02d ffcc4d fcea2b ffdd67 ffc107 fff176 ffe000 ffcc22 f5d142 f9c23c ffb62e",
    "green": "4caf50 388e3c 1b5e20 8bc34a 5c9e31 b1cc33 00d26a 77b255 9ccc65 009688 c6e377 00a99d 689f38",
    "blue": "2196f3 1976d2 0d47a1 03a9f4 4fc3f7 3b88c3 92d3f5 55acee 00bcd4 80d8ff 1a237e 42ade2 81d4fa"
    " 226699",
    "purple": "9c27b0 7b1fa2 673ab7 9266cc aa8dd8 b399c8 ba68c8 8b5cf6 4a148c 9b51e0 5e35b1",
    "pink": "f06292 f48fb1 f8bbd0 ff80ab ffa7c0 ff6dc6 f4abba fa9eb5 ec407a ff5ca8 d81b8c",
    "brown": "795548 5d4037 8d6e63 a0522d 6d4c41 a57939 854836 8b4513 3e2723 aa7a50 bf6952 c1694f",
    "black": "000000 1a1a1a 212121 292f33 2b2b2b 3f3f3f 31373d 263238 321b41 504e4e 433b4b 3a3440 483c56",
    "grey": "9e9e9e 757575 bdbdbd 616161 90a4ae 78909c 9b9b9a 99aab5 607d8b b0bec5 84a4af c4bbce b4acbc"
    " 998ea4",
    "white": "ffffff f5f5f5 fafafa eceff1 f0f0f0 e6e7e8 e1e8ed f3eef8 ebe3f5 f4eef5 d3dbe1",
    "beige": "ffe0b2 ffdbac f7dece fbe3c0 fce4d4 eac083 ffe8b6 ffcca8 fadcbc d9b98c",
}
"""Each word's examples, RGB in hexadecimal. "beige" is for skin and paper, and is never an answer."""

_NEVER = {"beige"}
SHARE = 0.6
"""How much of the opaque pixels the main colour must have."""
_OUTLINE = 0.35
"""Black up to this share is outlines, pupils and letters, and does not count."""


def _oklab(rgb: NDArray) -> NDArray:
    """OKLab of sRGB in [0, 1], `(..., 3)` to `(..., 3)`."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    ).T  # fmt: skip
    return np.cbrt(cones) @ np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    ).T  # fmt: skip


_WORDS = [word for word, codes in EXAMPLES.items() for _ in codes.split()]
_POINTS = _oklab(
    np.array([[*bytes.fromhex(code)] for codes in EXAMPLES.values() for code in codes.split()]) / 255
)


def colour_shares(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """The share of each word among the opaque pixels of an RGBA picture, `(height, width, 4)`."""
    opaque = pixels[pixels[..., 3] >= 128][:, :3]
    colours, counts = np.unique(opaque // 8 * 8 + 4, axis=0, return_counts=True)
    points = _oklab(colours / 255)
    nearest = ((points[:, None] - _POINTS) ** 2).sum(-1).argmin(1)
    shares = dict.fromkeys(EXAMPLES, 0.0)
    for number, count in zip(nearest, counts, strict=True):
        shares[_WORDS[number]] += count / len(opaque)
    return shares


def main_colour(pixels: NDArray[np.uint8]) -> str | None:
    """The word for the colour that most of an RGBA picture has, or None where no colour does."""
    shares = colour_shares(pixels)
    if shares["black"] < _OUTLINE:
        shares = {word: share / (1 - shares["black"]) for word, share in shares.items() if word != "black"}
    word = max(shares, key=shares.__getitem__)
    return word if shares[word] >= SHARE and word not in _NEVER else None
