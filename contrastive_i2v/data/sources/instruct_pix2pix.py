"""InstructPix2Pix's pairs: a source image, the instruction, the edited image; a clip of two frames.

The original folder has seeds.json, a list of [NAME, [SEED, ..]], and NAME/prompt.json with the instruction as `edit`,
and NAME/SEED_0.jpg -> NAME/SEED_1.jpg. Its splits are 90, 5 and 5 % by the place in that list, as its authors have
them. One of a folder's seeds is drawn: here a function of (seed, clip), so that each pair is encoded once; there anew
at each visit.

Parquet files have edit_prompt and the images' bytes as original_image (or input_image) and edited_image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from contrastive_i2v.data.parquet import parquet_columns, parquet_rows
from contrastive_i2v.data.sources.folder import is_file
from contrastive_i2v.data.sources.source import NO_FILE, Found, Place, Request, Source, pick, split_in
from contrastive_i2v.data.sources.tables import read_json
from contrastive_i2v.data.types import Clip, Images, ParquetRow, Skipped
from contrastive_i2v.errors import InputError, one_line

SEEDS = "seeds.json"
SHARES = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}
SOURCE_COLUMNS = ("original_image", "input_image")


def _recognise(place: Place) -> bool:
    if place.find(SEEDS):
        return True
    for file in _tables(place):
        try:
            if _image_columns(file):
                return True
        except InputError as error:
            if place.file or isinstance(error.__cause__, ImportError):
                raise
    return False


def _tables(place: Place) -> list[Path]:
    return place.find("*.parquet", "data/*.parquet")


def _image_columns(file: Path) -> tuple[str, ...]:
    """Source and edited image; () where the file holds something else."""
    names = parquet_columns(file)
    source = next((name for name in SOURCE_COLUMNS if name in names), None)
    return (source, "edited_image") if source and {"edit_prompt", "edited_image"} <= set(names) else ()


def _read(request: Request) -> Found:
    return _read_folder(request) if request.place.find(SEEDS) else _read_tables(request)


def _read_folder(request: Request) -> Found:
    root = request.place.root
    entries = read_json(root / SEEDS)
    if not isinstance(entries, list):
        raise InputError(f"{root / SEEDS}: expected a list of [folder, [seed, ..]]")
    split = request.choose_split(list(SHARES))
    first, last = (math.floor(share * len(entries)) for share in SHARES[split])
    return Found((_pair(root, entry, request) for entry in entries[first:last]), split)


def _pair(root: Path, entry: object, request: Request) -> Clip | Skipped:
    match entry:
        case [str(name), [*found]] if found and all(isinstance(seed, str) for seed in found):
            seeds = [str(seed) for seed in found]
        case _:
            return Skipped(root / SEEDS, f"expected [folder, [seed, ..]], got {one_line(entry)}")
    names = [f"{pick(seeds, request.seed, 'pair', name)}_{number}.jpg" for number in (0, 1)]
    if any("/" in part or part in ("", ".", "..") or "\0" in part for part in (name, *names)):
        return Skipped(root / SEEDS, f"expected names without a slash, got {one_line(entry)}")
    folder = root / name
    if missing := [file for file in (*names, "prompt.json") if not is_file(folder / file)]:
        return Skipped(folder / missing[0], NO_FILE)
    try:
        prompt = read_json(folder / "prompt.json")
    except InputError as error:
        return Skipped.because(folder / "prompt.json", error)
    caption = request.caption(prompt.get("edit") if isinstance(prompt, Mapping) else None)
    return Clip(folder, caption, part=Images(tuple(names))) if caption else Skipped(folder, "no edit in prompt.json")


def _read_tables(request: Request) -> Found:
    splits: dict[str, list[Path]] = {}
    for file in _tables(request.place):
        splits.setdefault(split_in(file.stem) or "train", []).append(file)
    split = request.choose_split(sorted(splits, reverse=True))
    return Found(chain.from_iterable(_table(file, request) for file in splits[split]), split)


def _table(file: Path, request: Request) -> Iterator[Clip | Skipped]:
    try:
        columns = _image_columns(file)
        for group, row, cells in parquet_rows(file, ["edit_prompt"]) if columns else ():
            if caption := request.caption(cells["edit_prompt"]):
                yield Clip(file, caption, part=ParquetRow(group, row, columns))
            else:
                yield Skipped(file, f"no edit_prompt in row {row} of group {group}")
    except InputError as error:  # damage: the rows before it stay
        yield Skipped.because(file, error)


SOURCE = Source(
    name="instruct-pix2pix",
    looks_for=f"{SEEDS}, or .parquet with the columns original_image or input_image, edit_prompt, edited_image",
    recognise=_recognise,
    read=_read,
    takes=("split",),
)
