"""The one reader of pictures: modes keep their range; training, evaluation and pipelines see the same."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_autoencoder

from guided_diffusers import VAEPipeline
from guided_diffusers.evaluation import read_images
from guided_diffusers.store.image_reader import eight_bit_image, read_image
from guided_diffusers.training.data.decoding import decode_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
SIXTEEN = RAMP.astype(np.uint16) * 257
LEFT = np.where(np.arange(16) < 8, 255, 0)[None].repeat(16, 0).astype(np.uint8)  # opaque left, clear right
ON_WHITE = np.where(LEFT == 255, RAMP, 255)


def encoded(image, form="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(*entries):
    """EXIF data of (tag, kind, count, value of at most 4 bytes), little endian."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def tags(values):
    """The same as Pillow writes it."""
    written = Image.Exif()
    written.update(values)
    return written


def palette_with_a_clear_colour():
    image = Image.fromarray(ON_WHITE.astype(np.uint8)).convert("P")
    image.putpalette([value for value in range(255) for _ in range(3)] + [0, 0, 0])  # 255 hides black
    return image


def tiff(pixels, bits, photometric=0, sample=1):
    """A TIFF with tags that Pillow does not write: white at 0 by default, `sample` 3 is floating point."""
    values = (16, 16, bits, 1, photometric, 8, 1, 16, len(pixels), sample)
    entries = zip((256, 257, 258, 259, 262, 273, 277, 278, 279, 339), values, strict=True)
    directory = b"".join(struct.pack("<HHII", tag, 4 - (bits == value), 1, value) for tag, value in entries)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", 10) + directory + bytes(4)
    )


def twelve_bits(ramp):
    """Values of 12 bits whose upper 8 are the ramp's, two in three bytes."""
    first, second = (ramp.ravel()[place::2].astype(np.uint16) * 16 for place in (0, 1))
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


TURN = (0x0112, 3, 1, struct.pack("<H", 3))  # by 180 degrees
FILES = {
    "8-bit PNG": (encoded(RAMP), RAMP),
    "16-bit PNG": (encoded(SIXTEEN), RAMP),
    "16-bit TIFF": (encoded(SIXTEEN, "TIFF"), RAMP),
    "16-bit PGM": (b"P5\n16 16\n65535\n" + SIXTEEN.astype(">u2").tobytes(), RAMP),
    "a dark 16-bit PGM": (b"P5\n16 16\n65535\n" + RAMP.astype(">u2").tobytes(), np.zeros_like(RAMP)),
    "10-bit PGM": (b"P5\n16 16\n1020\n" + (RAMP.astype(np.uint16) * 4).astype(">u2").tobytes(), RAMP),
    "32-bit integer TIFF": (encoded(SIXTEEN.astype(np.int32), "TIFF"), RAMP),
    "float TIFF": (encoded((RAMP / 255).astype(np.float32), "TIFF"), RAMP),
    "16-bit TIFF, white at 0": (tiff((65535 - SIXTEEN).tobytes(), 16), RAMP),
    "float TIFF, white at 0": (tiff((1 - RAMP / 255).astype("<f4").tobytes(), 32, sample=3), RAMP),
    "12-bit TIFF": (tiff(twelve_bits(RAMP), 12, photometric=1), RAMP),
    "1 bit": (encoded(Image.fromarray(LEFT).convert("1")), LEFT),
    "grey and alpha": (encoded(Image.merge("LA", [Image.fromarray(a) for a in (RAMP, LEFT)])), ON_WHITE),
    "palette with a clear colour": (encoded(palette_with_a_clear_colour(), transparency=255), ON_WHITE),
    "16-bit PNG with a clear value": (encoded(SIXTEEN, transparency=257), np.where(RAMP == 1, 255, RAMP)),
    "CMYK": (encoded(Image.fromarray(RAMP).convert("RGB").convert("CMYK"), "TIFF"), RAMP),
    "two frames": (encoded(RAMP, "TIFF", save_all=True, append_images=[Image.fromarray(LEFT)]), RAMP),
    "turned PNG": (encoded(RAMP, exif=exif(TURN)), RAMP[::-1, ::-1]),
    "turned TIFF": (encoded(RAMP, "TIFF", exif=tags({0x0112: 3})), RAMP[::-1, ::-1]),
}


@pytest.fixture(scope="module")
def pipeline():
    return VAEPipeline(tiny_autoencoder())


@pytest.mark.parametrize("name", FILES)
def test_training_evaluation_and_pipelines_see_the_same_pixels(name, tmp_path, pipeline, monkeypatch):
    data, expected = FILES[name]
    assert np.array_equal(decode_image(data, 16, 1)[0], expected)
    (tmp_path / "x.png").write_bytes(data)
    assert np.array_equal(read_images(tmp_path).images[0, 0].numpy(), expected)
    seen, encode = [], pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda images: seen.append(images) or encode(images))
    pipeline.reconstruct(Image.open(io.BytesIO(data)))
    assert np.array_equal(((seen[0][0, 0] + 1) * 127.5).round().numpy(), expected)


NONSENSE = {
    "a date that is a number": (0x0132, 11, 1, struct.pack("<f", 1.5)),
    "two numbers as the software": (0x0131, 3, 2, struct.pack("<HH", 1, 2)),
    "a resolution in bytes": (0x011A, 7, 1, b"\xff"),
    "bytes above 255": (0x02BC, 3, 2, struct.pack("<HH", 300, 2)),
    "strips that are not there": (0x0111, 4, 1, struct.pack("<I", 7)),
    "an EXIF directory beyond the end": (0x8769, 4, 1, struct.pack("<I", 2**31)),
    "a type that there is not": (0x010E, 99, 1, b"a"),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", NONSENSE)
def test_of_damaged_metadata_the_orientation_is_read(name, form):
    unit = (0x0128, 3, 1, struct.pack("<H", 2))
    straight = read_image(encoded(RAMP, form))
    turned = read_image(encoded(RAMP, form, exif=exif(TURN, unit, NONSENSE[name])))
    assert np.array_equal(np.asarray(turned), np.asarray(straight)[::-1, ::-1])


@pytest.mark.parametrize("metadata", [b"Exif\0\0II*\0", b"Exif\0\0nonsense", exif((0x0112, 2, 4, b"six\0"))])
def test_an_orientation_that_cannot_be_read_is_none(metadata):
    assert np.array_equal(np.asarray(read_image(encoded(RAMP, exif=metadata))), RAMP)


def test_damaged_metadata_of_a_tiff():
    """Pillow turns a TIFF while it loads it, and writes its metadata anew to do so."""
    data = encoded(RAMP, "TIFF", exif=tags({0x0112: 3, 0x0131: "some software"}))
    place = data.index(struct.pack("<HH", 0x0131, 2))
    data = data[:place] + struct.pack("<HH", 0x0131, 7) + data[place + 4 :]  # a text said to be bytes
    assert np.array_equal(np.asarray(read_image(data)), RAMP[::-1, ::-1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.float32), "floating-point values from 0 to 255; allowed: 0 .black. to 1 .white."),
        (RAMP / np.float32(255) - np.float32(0.5), "floating-point values from -0.5 to 0.5"),
        (np.full((4, 4), np.nan, np.float32), "floating-point values from nan"),
        (RAMP.astype(np.int32), "32-bit integers from 0 to 255, whose range may be any"),
        (RAMP.astype(np.int32) * 1000, "32-bit integers from 0 to 255000"),
        (-SIXTEEN.astype(np.int32), "32-bit integers from -65535 to 0"),
    ],
)
def test_values_without_a_range_are_refused(values, message, tmp_path, pipeline):
    with pytest.raises(ValueError, match=message):
        decode_image(encoded(values, "TIFF"), 16, 1)
    with pytest.raises(ValueError, match=message):
        pipeline.reconstruct(Image.fromarray(values))
    (tmp_path / "x.bmp").write_bytes(encoded(values, "TIFF"))
    with pytest.raises(ValueError, match=f"x.bmp is no readable image .the image holds {message}"):
        read_images(tmp_path)


def test_an_image_that_is_given_is_left_as_it_is():
    image = Image.open(io.BytesIO(FILES["turned TIFF"][0]))
    first, second = (np.asarray(eight_bit_image(image)) for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(first, RAMP[::-1, ::-1])
    assert "getexif" not in vars(image) and image.getexif()[0x0112] == 3
