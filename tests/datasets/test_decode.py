"""Image files of every kind: the pixels a viewer shows, or one line with the file's name."""

import io
import os
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rmlib import UserError
from rmlib.data import load
from rmlib.datasets import decode, sources

RAMP = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def with_image(tmp_path):
    """A folder of four plain images and one more in train/cat; returns its name."""

    def build(image, ending="png", **options):
        rng = np.random.default_rng(0)
        for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
            (tmp_path / "pets" / folder).mkdir(parents=True)
            pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / folder / "plain.png")
        path = tmp_path / "pets/train/cat" / f"odd.{ending}"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **options)
        return f"folder:{tmp_path / 'pets'}"

    return build


def added(name):
    """The pixels (H, W, 3) of the image that was added to the plain ones."""
    plain = Image.open(name.removeprefix("folder:") + "/train/cat/plain.png")
    images = [image.permute(1, 2, 0).numpy() for image in load(name).images[:2]]
    (found,) = [image for image in images if not np.array_equal(image, np.asarray(plain))]
    return found


def grey(pixels):
    return np.repeat(pixels[..., None], 3, axis=2)


SIXTEEN = Image.fromarray(RAMP.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "image, ending",
    [
        (Image.fromarray(RAMP), "png"),
        (Image.fromarray(RAMP), "tif"),
        (Image.fromarray(RAMP), "GIF"),
        (Image.fromarray(RAMP), "pgm"),
        (SIXTEEN, "png"),
        (SIXTEEN, "tiff"),
        (SIXTEEN, "pgm"),
        (Image.fromarray(RAMP.astype(np.uint16) * 256), "png"),
    ],
)
def test_greys_stay_what_they_are(with_image, capsys, image, ending):
    assert np.array_equal(added(with_image(image, ending)), grey(RAMP))
    told = "train: 1 of 16 bits, of which the high 8 count" in capsys.readouterr().err
    assert told == image.mode.startswith("I")


def test_greys_whose_zero_is_white(with_image):
    assert np.array_equal(added(with_image(SIXTEEN, "tif", tiffinfo={262: 0})), grey(255 - RAMP))


def test_colours_of_16_bits_are_said_too(with_image, capsys):
    """Pillow reads them and does not write them: a PNG by hand."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    size = b"".join(side.to_bytes(4, "big") for side in (6, 4))
    rows = b"".join(b"\0" + row.tobytes() for row in (grey(RAMP).astype(">u2") * 257))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([16, 2, 0, 0, 0]))
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(added(with_image(content)), grey(RAMP))
    assert "train: 1 of 16 bits, of which the high 8 count" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_greys_without_a_fixed_range_are_refused(with_image, kind):
    with pytest.raises(UserError, match="odd.tif in .* no fixed black and white"):
        load(with_image(Image.fromarray(RAMP.astype(kind)), "tif"))


def test_what_is_transparent_lies_on_white(with_image, capsys):
    colours = np.zeros((4, 6, 4), np.uint8)
    # red, opaque at the left, half in the middle, not at all at the right
    colours[..., 0], colours[:, :2, 3], colours[:, 2:4, 3] = 200, 255, 128
    found = added(with_image(Image.fromarray(colours)))
    assert (found[:, :2] == [200, 0, 0]).all() and (found[:, 4:] == 255).all()
    assert np.abs(found[:, 2:4].astype(int) - [227, 127, 127]).max() <= 1
    assert "train: 1 transparent, laid on white" in capsys.readouterr().err


@pytest.mark.parametrize("transparent", [1, b"\xff\x00"])
def test_a_palette_with_transparency(with_image, capsys, transparent):
    image = Image.new("P", (6, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (3, 0, 6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = added(with_image(image, transparency=transparent))
    assert (found[:, :3] == [10, 20, 30]).all() and (found[:, 3:] == 255).all()
    assert "transparent, laid on white" in capsys.readouterr().err


def test_an_opaque_alpha_changes_and_says_nothing(with_image, capsys):
    pixels = np.full((4, 6, 4), 255, np.uint8)
    pixels[..., :3] = RAMP[..., None]
    assert np.array_equal(added(with_image(Image.fromarray(pixels))), pixels[..., :3])
    assert capsys.readouterr().err == ""


def test_cmyk_is_made_rgb(with_image, capsys):
    found = added(with_image(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "tif"))
    assert (found == [255, 0, 0]).all()
    assert "train: 1 of CMYK colours, made RGB" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png"])
def test_of_several_pictures_the_first_counts(with_image, capsys, ending):
    first, *rest = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime"))
    options = {"lossless": True} if ending == "webp" else {}
    name = with_image(first, ending, save_all=True, append_images=rest, **options)
    assert (added(name) == [255, 0, 0]).all()
    assert "train: 1 with several pictures, of which the first counts" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_a_viewer_shows_it(with_image, capsys, ending, orientation):
    """Stored so that, turned by its EXIF orientation, black is at the left and white below."""
    upright = np.full((4, 6, 3), 128, np.uint8)
    upright[:, :2], upright[3:] = 0, 255
    # what each orientation's viewer undoes
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else options
    image = Image.fromarray(np.ascontiguousarray(stored))
    found = added(with_image(image, ending, exif=exif, **options))
    assert np.abs(found.astype(int) - upright).max() <= (40 if ending == "jpg" else 0)
    told = "train: 1 turned as their EXIF orientation says" in capsys.readouterr().err
    assert told == (orientation > 1)


def test_broken_exif_is_no_broken_picture(with_image):
    pixels = np.repeat(RAMP[..., None], 3, axis=2)
    assert np.array_equal(added(with_image(Image.fromarray(pixels), exif=b"Exif\0\0bad")), pixels)


def bomb():
    """A PNG that states 20 000 x 20 000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def long_text():
    """A PNG with a large chunk of text."""
    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("long", "x" * 2**21, zip=True)
    Image.new("RGB", (6, 4)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def half():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()[:80]


BROKEN = {
    "bomb": (bomb(), "DecompressionBomb"),
    "text": (long_text(), "ValueError"),
    "half": (half(), "OSError|SyntaxError"),
    "nothing": (b"", "UnidentifiedImageError"),
    "text file": (b"not an image", "UnidentifiedImageError"),
    "a program for a printer": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "UnidentifiedImageError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_one_line_with_the_name(with_image, tmp_path, kind):
    content, reason = BROKEN[kind]
    name = with_image(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "pets").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "pets"))
    for each in (name, f"folder:{tmp_path / 'a.zip'}"):
        words = f"^train/cat/odd.png in .* cannot be read as an image .({reason})"
        with pytest.raises(UserError, match=words) as error:
            load(each)
        assert "\n" not in str(error.value) and "mend it or take it away" in str(error.value)


@pytest.mark.parametrize("place", ["train/cat", "test/dog"])
def test_another_size_is_refused_with_both_names(with_image, tmp_path, place):
    name = with_image(Image.new("RGB", (6, 4)))
    Image.new("RGB", (5, 9)).save(tmp_path / "pets" / place / "other.png")
    with pytest.raises(UserError, match=f"4 x 6 .*and 9 x 5 .{place}/other.png.*resize"):
        load(name)


def test_test_images_of_another_size_are_refused(with_image, tmp_path):
    name = with_image(Image.new("RGB", (6, 4)))
    for label in ("cat", "dog"):
        Image.new("RGB", (12, 8)).save(tmp_path / "pets/test" / label / "plain.png")
    with pytest.raises(UserError, match="4 x 6 .train/cat.* and 8 x 12 .test/cat/plain.png"):
        load(name)


def test_more_pixels_than_memory_are_refused_at_once(with_image, monkeypatch):
    name = with_image(Image.new("RGB", (6, 4)))
    pages = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 100}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(UserError, match="3 images of 4 x 6 need 0 of 0 GiB of memory: resize"):
        load(name)


def test_a_killed_process_is_told_as_killed(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    tasks = [(os.getpid(),), (os.getpid(),)]
    with pytest.raises(UserError, match="a process was killed while decoding test: it needs more"):
        decode.parallel(lambda here: os.getpid() != here and os._exit(1), tasks, "decoding test")


def test_many_images_are_decoded_side_by_side_like_one_by_one(tmp_path, monkeypatch):
    """In chunks of three; sizes are compared between them, too."""
    monkeypatch.setattr(decode, "CHUNK", 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    names = [f"{i}.png" for i in range(8)]
    for i, name in enumerate(names):
        Image.new("RGB" if i % 2 else "L", (6, 4), i if i % 2 == 0 else (i, i, i)).save(
            tmp_path / name
        )
    pixels, modes, _ = decode.decode(tmp_path, names, "train")
    assert pixels.shape == (8, 3, 4, 6) and modes == {"L": 4, "RGB": 4}
    assert (pixels == np.arange(8)[:, None, None, None]).all()
    for name in names[6:]:
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    with pytest.raises(UserError, match="4 x 6 .0.png. and 4 x 5 .6.png.: resize"):
        decode.decode(tmp_path, names, "train")


@pytest.fixture
def zipped(with_image, tmp_path):
    """A zip of such a folder, and a function that changes bytes of its last entry's headers."""
    with_image(Image.new("RGB", (6, 4)))
    path = tmp_path / "a.zip"

    def build(content=None, how=zipfile.ZIP_DEFLATED, **changes):
        with zipfile.ZipFile(path, "w") as archive:
            for image in (tmp_path / "pets").rglob("*.png"):
                archive.write(image, image.relative_to(tmp_path / "pets"))
            archive.writestr("train/cat/z.png", content or half(), how)
            for field, value in changes.items():
                setattr(archive.infolist()[-1], field, value)
        return f"folder:{path}"

    return build


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"compress_type": 9}, "compressed by method 9: pack the zip again"),
        ({"how": zipfile.ZIP_BZIP2}, "compressed by method 12: pack the zip again"),
        ({"flag_bits": 1}, "encrypted: pack the zip again"),
        ({"file_size": 10 * 2**30 - 1}, "has 10240 MiB, an image here at most 256"),
        ({"CRC": 7}, "BadZipFile"),
    ],
)
def test_entries_of_a_zip_that_are_not_read(zipped, changes, words):
    with pytest.raises(UserError, match=f"^train/cat/z.png .*{words}"):
        load(zipped(**changes))


def test_a_zip_entry_is_measured_before_it_is_read(zipped, monkeypatch):
    """Zeros that grow a thousandfold, with their true size and with a small one."""
    zeros, grown = bytes(64 * 2**20), []
    whole = zlib.decompressobj

    class Measured:
        def __init__(self, *options):
            self.inner = whole(*options)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decompress(self, *options):
            grown.append(len(data := self.inner.decompress(*options)))
            return data

    monkeypatch.setattr(zlib, "decompressobj", Measured)
    monkeypatch.setattr(decode, "LARGEST", 32)
    with pytest.raises(UserError, match="z.png has 64 MiB"):
        load(zipped(zeros))
    with pytest.raises(UserError, match="z.png in .* cannot be read"):
        load(zipped(zeros, file_size=1000))
    assert grown and max(grown) <= 4096


def test_a_sparse_file_is_measured_too(with_image, tmp_path):
    name = with_image(b"")
    with open(tmp_path / "pets/train/cat/odd.png", "wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(UserError, match="train/cat/odd.png has 10240 MiB"):
        sources.read(name)
