"""Two folders of videos become pairs: matched by file name, with a caption and, if given, the input image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from contrastive_i2v.data.decoding import decode_seconds, open_container
from contrastive_i2v.data.images import IMAGE_EXTENSIONS, read_image
from contrastive_i2v.data.sources.folder import METADATA_NAMES, read_caption, read_folder
from contrastive_i2v.data.types import Skipped
from contrastive_i2v.data.video import VIDEO_EXTENSIONS, probe, read_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.videos import MIME_TYPES

CODECS = ("h264", "vp8", "vp9", "av1", "libvpx", "libvpx-vp9", "libdav1d", "libaom-av1")
"""What every current browser plays, by the names that decoders give them."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two videos of the same thing, one a method."""

    name: str
    """The stem that both files share."""
    caption: str
    """The prompt; "" where faithfulness isn't asked and there is none."""
    a: Path
    b: Path
    image: Path | None = None
    """The image both were made from, or a video whose first frame it is."""


def find_pairs(
    a: Path,
    b: Path,
    *,
    captions: Path | None = None,
    images: Path | None = None,
    need_captions: bool = True,
    skip_unmatched: bool = False,
) -> tuple[list[Pair], list[Skipped]]:
    """The videos directly in `a` and `b` matched by stem, sorted by it, and those left out.

    Args:
        captions: folder with NAME.txt or a metadata file; None = what lies in `a`, and then in `b`.
        images: folder of images, or of videos whose first frame is meant, by the same stems.
        need_captions: whether a pair without a caption is an error.
        skip_unmatched: leave a video without counterpart out instead of raising.

    Raises InputError naming the file for an unmatched video, two videos of one stem, a video that browsers can't
    play, and a missing caption or image.
    """
    videos_a, videos_b = (_by_stem(folder, VIDEO_EXTENSIONS, "videos") for folder in (a, b))
    unmatched = [
        Skipped(path, f"no {path.stem} in {other}")
        for mine, theirs, other in ((videos_a, videos_b, b), (videos_b, videos_a, a))
        for stem, path in mine.items()
        if stem not in theirs
    ]
    if unmatched and not skip_unmatched:
        listed = "; ".join(f"{one.path}: {one.reason}" for one in unmatched[:3])
        more = f"; and {len(unmatched) - 3} more" if len(unmatched) > 3 else ""
        raise InputError(f"{listed}{more}. Videos match by file name; --skip-unmatched leaves these out")
    names = sorted(videos_a.keys() & videos_b.keys())
    if not names:
        raise InputError(f"{a} and {b}: no video of the one has the file name of a video of the other")

    texts = _captions(captions) if captions else {**_captions(b), **_captions(a)}
    pictures = _by_stem(images, (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS), "images") if images else {}
    where = captions or a
    for name in names:
        if need_captions and not texts.get(name):
            raise InputError(
                f"{videos_a[name]}: no caption; faithfulness is judged against it. Write {where / name}.txt, give "
                f"--captions FOLDER, or ask only --questions quality"
            )
        if images and name not in pictures:
            raise InputError(f"{videos_a[name]}: no image {name}.png in --images {images}")
        for path in (videos_a[name], videos_b[name]):
            _check_playable(path)
        if name in pictures:
            read_picture(pictures[name])
    pairs = [Pair(name=n, caption=texts.get(n, ""), a=videos_a[n], b=videos_b[n], image=pictures.get(n)) for n in names]
    return pairs, unmatched


def read_picture(path: Path) -> Tensor:
    """An image, or the first frame of a video, as uint8 `[3, H, W]`. Raises InputError naming the file."""
    return (read_frames(path, [0]) if path.suffix.lower() in VIDEO_EXTENSIONS else read_image(path))[0]


def _by_stem(folder: Path, extensions: Sequence[str], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder of {what}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise InputError(f"{path}: {found[path.stem].name} has the same stem; keep one of them")
            found[path.stem] = path
    if not found:
        raise InputError(f"{folder}: holds no {what}; looked for {', '.join(extensions)}")
    return found


def _captions(folder: Path) -> Mapping[str, str]:
    """Captions by stem: of NAME.txt, and before it of the rows of a metadata file."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder with captions")
    found = {}
    for path in sorted(folder.glob("*.txt")):
        found[path.stem] = read_caption(path)
    if any((folder / name).exists() for name in METADATA_NAMES):
        found |= {clip.path.stem: clip.caption for clip in read_folder(folder)[0]}
    return found


def _check_playable(path: Path) -> None:
    import av

    if path.suffix.lower() not in MIME_TYPES:
        raise InputError(f"{path}: browsers don't play {path.suffix}; expected {', '.join(MIME_TYPES)}")
    read_frames(path, [max(0, probe(path).frames - 2)])  # to its end; a header may overstate the length by one
    try:
        with open_container(path, decode_seconds()) as container:
            codec = container.streams.video[0].codec_context.name
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{path}: can't be opened, the file is corrupt or not a video ({error})") from error
    if codec not in CODECS:
        raise InputError(f"{path}: its codec is {codec}, which browsers don't play; encode it as H.264, VP9 or AV1")
