"""Which format a path is, and the options that a format takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dataset_files import found, touch, write

from contrastive_i2v.data.sources import SOURCES, SourceConfig, read
from contrastive_i2v.errors import InputError


def test_every_format_is_in_the_documents_table() -> None:
    text = (Path(__file__).parents[3] / "docs/data.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) == set(SOURCES)


def test_nothing_recognised_lists_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.md")
    with pytest.raises(InputError) as raised:
        read(tmp_path / "empty")
    assert "holds no videos" in str(raised.value)
    with pytest.raises(InputError) as of_a_file:
        read(tmp_path / "empty/notes.md")
    for message in (str(raised.value), str(of_a_file.value)):
        assert "\n" not in message and all(f"({name})" in message for name in SOURCES)
    with pytest.raises(InputError, match="nowhere: no such folder or file"):
        read(tmp_path / "nowhere")


def test_an_ambiguous_folder_takes_a_format(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,text\na.mp4,of the folder\n")
    write(tmp_path / "results_2M_val.csv", "videoid,page_dir,name\na,p,of WebVid\n")
    touch(tmp_path, "a.mp4")
    with pytest.raises(InputError, match=r"could be folder or webvid; give one as source\.format"):
        read(tmp_path)
    assert found(read(tmp_path, SourceConfig(format="webvid")), tmp_path) == {"a.mp4": "of WebVid"}
    assert found(read(tmp_path, SourceConfig(format="folder")), tmp_path) == {"a.mp4": "of the folder"}
    assert found(read(tmp_path / "metadata.csv"), tmp_path) == {"a.mp4": "of the folder"}
    with pytest.raises(InputError, match=r"no format was recognised. Looked for \.tar files \(webdataset\)"):
        read(tmp_path, SourceConfig(format="webdataset"))
    with pytest.raises(InputError, match="source.format: other is unknown; expected one of folder, two-lists"):
        read(tmp_path, SourceConfig(format="other"))


@pytest.mark.parametrize("name, value", [("split", "train"), ("videos", Path("x")), ("template", "{a}.mp4")])
def test_an_option_without_a_use_is_refused(name: str, value: object, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    write(tmp_path / "a.txt", "a")
    with pytest.raises(InputError, match=f"source.{name}: folder, the format of .*, has no use for it"):
        read(tmp_path, SourceConfig(**{name: value}))  # type: ignore[arg-type]


def test_hidden_lists_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "._results_2M_val.csv", "videoid,page_dir,name\n")
    write(tmp_path / "results_2M_val.csv", "videoid,page_dir,name\na,p,A\n")
    touch(tmp_path, "a.mp4")
    assert found(read(tmp_path), tmp_path) == {"a.mp4": "A"}
