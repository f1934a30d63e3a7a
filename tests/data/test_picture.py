"""Pictures from anybody's file: upright, RGB, bounded; what is no picture ends in one error."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip.data.picture import MAX_PIXELS, as_rgb, as_square, middle_square, open_picture
from unclip.files import UnclipError


def noise(width: int = 12, height: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, picture: Image.Image, **more: object) -> Path:
    picture.save(path, **more)
    return path


def test_a_plain_picture_keeps_every_bit(tmp_path: Path) -> None:
    assert np.array_equal(np.asarray(open_picture(saved(tmp_path / "a.png", Image.fromarray(noise())))), noise())


@pytest.mark.parametrize(("orientation", "turned"), [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)])
def test_it_is_turned_upright_as_the_camera_says(tmp_path: Path, orientation: int, turned: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_picture(saved(tmp_path / "a.png", Image.fromarray(noise()), exif=exif))
    assert np.array_equal(np.asarray(picture), turned(noise()))  # type: ignore[operator]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "RGBX"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    of_mode = Image.new("I;16", (12, 8), 65535) if mode == "I;16" else Image.new(mode, (12, 8)) if mode == "LAB" else Image.fromarray(noise()).convert(mode)
    rgb = as_rgb(of_mode)
    assert (rgb.mode, rgb.size) == ("RGB", (12, 8))


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    values = np.array([[0, 257 * 100, 65535]] * 2, dtype=np.uint16)
    assert np.asarray(as_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 100, 255]


def test_values_that_could_mean_anything_are_refused() -> None:
    with pytest.raises(UnclipError, match="8 or 16 bits a channel, got Pillow's mode 'F'"):
        as_rgb(Image.new("F", (4, 4)))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((1, 1), (0, 0, 255, 255))
    rgb = open_picture(saved(tmp_path / "a.png", picture))
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert rgb.getpixel((1, 1)) == (0, 0, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert as_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert open_picture(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises very many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(**more: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(60, 40)).save(buffer, **more)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(10_000, 10_000), "10000 x 10000 pixels; at most 50,000,000"),
        (bomb(60_000, 60_000), "pixels"),
        (bomb(1, 40), "at least 2 on each side"),
        (b"", "not a picture"),
        (b"a caption", "not a picture"),
        (encoded(format="PNG")[:300], "does not open"),
        (encoded(format="JPEG")[:400], "does not open"),
        (encoded(format="WEBP")[:200], "does not open|not a picture"),
    ],
)
def test_what_cant_be_used_is_one_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnclipError, match=words) as error:
        open_picture(tmp_path / "a.png")
    assert "\n" not in str(error.value)
    assert "a.png" in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match="no such file"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(UnclipError, match="is a folder"):
        open_picture(tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damage_anywhere_opens_or_is_one_error(tmp_path: Path, form: str) -> None:
    rng, whole = np.random.default_rng(1), encoded(format=form)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 3):
            damaged[place] = int(rng.integers(256))
        (tmp_path / "a").write_bytes(damaged)
        try:
            assert open_picture(tmp_path / "a").mode == "RGB"
        except UnclipError:
            continue


@pytest.mark.parametrize(("size", "box"), [((12, 8), (2, 0, 10, 8)), ((8, 13), (0, 2, 8, 10)), ((5, 5), (0, 0, 5, 5))])
def test_the_middle_square(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert middle_square(size) == box


def test_a_square_of_the_right_size_is_its_pixels() -> None:
    assert np.array_equal(as_square(Image.fromarray(noise(8, 8)), 8), noise(8, 8))
    assert np.array_equal(as_square(Image.fromarray(noise(12, 8)), 8), noise(12, 8)[:, 2:10])
    assert as_square(Image.fromarray(noise(12, 8)), 3).shape == (3, 3, 3)


def test_the_bound_is_that_of_the_download_stage() -> None:
    from unclip.data.download import DownloadConfig

    assert DownloadConfig().max_image_pixels == MAX_PIXELS
