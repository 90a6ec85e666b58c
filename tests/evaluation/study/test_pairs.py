"""Matching two folders, and what is said where they don't match."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from contrastive_i2v.data.shapes import ShapesConfig, sample_scene
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.study.pairs import find_pairs, read_picture
from contrastive_i2v.files import file_hash


@pytest.fixture
def copies(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / folders[0].name, tmp_path / folders[1].name


def test_pairs_by_stem_with_captions_and_images(folders: tuple[Path, Path]) -> None:
    images = folders[0].parent / "images"
    pairs, left_out = find_pairs(*folders, images=images)
    assert not left_out
    assert [pair.name for pair in pairs] == ["00000", "00001", "00002", "00003"]
    for index, pair in enumerate(pairs):
        assert pair.caption == sample_scene(ShapesConfig(), "test", index).caption
        assert (pair.a, pair.b) == tuple(folder / f"{pair.name}.mp4" for folder in folders)
        assert pair.image == images / f"{pair.name}.png"


def test_image_from_a_video_is_its_first_frame(folders: tuple[Path, Path]) -> None:
    pair = find_pairs(*folders, images=folders[0])[0][0]
    still = read_picture(folders[0].parent / "images" / f"{pair.name}.png")
    assert pair.image == pair.a
    assert (read_picture(pair.image).int() - still.int()).abs().float().mean() < 4  # H.264 loses a little


def test_captions_from_metadata_and_from_a_folder_of_texts(copies: tuple[Path, Path], tmp_path: Path) -> None:
    (copies[0] / "metadata.csv").write_text("file_name,text\n00001.mp4,a dog\n")
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("00000", "00001", "00002", "00003"):
        (texts / f"{name}.txt").write_text(f"text\n of  {name}")
    assert find_pairs(*copies)[0][1].caption == "a dog"
    assert find_pairs(*copies, captions=texts)[0][1].caption == "text of 00001"


def test_unmatched_videos_are_named_or_left_out(copies: tuple[Path, Path]) -> None:
    (copies[1] / "00002.mp4").unlink()
    shutil.copy(copies[0] / "00000.mp4", copies[1] / "extra.mp4")
    with pytest.raises(InputError, match=r"zebra/00002\.mp4: no 00002 in .*quagga; .*extra\.mp4.*--skip-unmatched"):
        find_pairs(*copies)
    pairs, left_out = find_pairs(*copies, skip_unmatched=True)
    assert [pair.name for pair in pairs] == ["00000", "00001", "00003"]
    assert [skipped.path.name for skipped in left_out] == ["00002.mp4", "extra.mp4"]


def test_bad_input_is_named(copies: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = copies
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_pairs(a, tmp_path / "nowhere")
    with pytest.raises(InputError, match="empty: holds no videos"):
        find_pairs(a, empty)
    with pytest.raises(InputError, match=r"zebra/00000\.mp4: no image 00000\.png"):
        shutil.copy(folder_image(a), empty / "other.png")
        find_pairs(a, b, images=empty)
    for folder in copies:
        (folder / "00003.txt").unlink()
    with pytest.raises(InputError, match=r"zebra/00003\.mp4: no caption.*--questions quality"):
        find_pairs(a, b)
    assert find_pairs(a, b, need_captions=False)[0][3].caption == ""
    (b / "00001.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match=r"quagga/00001\.mp4: can't be decoded"):
        find_pairs(a, b, need_captions=False)
    shutil.copy(a / "00000.mp4", a / "00000.webm")
    with pytest.raises(InputError, match=r"00000\.webm: 00000\.mp4 has the same stem"):
        find_pairs(a, b)


@pytest.mark.fault("a video of a study opens and breaks later", "serve refuses it by name, before anybody votes")
def test_a_video_that_breaks_later_is_refused(copies: tuple[Path, Path], break_later: Callable[[Path], None]) -> None:
    break_later(copies[1] / "00002.mp4")
    with pytest.raises(InputError, match=r"quagga/00002\.mp4: can't be decoded"):
        find_pairs(*copies)


def folder_image(folder: Path) -> Path:
    """Any picture."""
    from PIL import Image

    path = folder / "any.png"
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_a_codec_that_browsers_do_not_play_is_refused(copies: tuple[Path, Path]) -> None:
    import av
    import numpy as np

    with av.open(str(copies[1] / "00000.mp4"), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)  # what OpenCV's "mp4v" writes
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match=r"quagga/00000\.mp4: its codec is mpeg4.*H\.264"):
        find_pairs(*copies)
    (copies[1] / "00000.mp4").rename(copies[1] / "00000.avi")
    with pytest.raises(InputError, match=r"00000\.avi: browsers don't play \.avi"):
        find_pairs(*copies)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
