"""MSR-VTT: the challenge's JSON, retrieval lists beside it, and the hub's lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_files import CAPTIONS, READ, found, left_out, touch, write

from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.types import Clip
from contrastive_i2v.errors import InputError


def video(number: int, split: str) -> dict[str, object]:
    times = {"start time": 137.72, "end time": 149.44}
    return {"video_id": f"video{number}", "category": 9, "url": "u", **times, "split": split, "id": number}


def sentence(number: int, caption: str) -> dict[str, object]:
    return {"sen_id": 0, "video_id": f"video{number}", "caption": caption}


def info(splits: dict[int, str]) -> dict[str, object]:
    sentences = [sentence(n, f"{caption} {n}") for caption in CAPTIONS for n in splits]  # not in order of the videos
    return {"info": {}, "videos": [video(n, split) for n, split in splits.items()], "sentences": sentences}


def test_the_challenges_json_in_two_files_or_one(tmp_path: Path) -> None:
    train_val, test = {0: "train", 1: "train", 2: "validate"}, {7: "test"}
    write(tmp_path / "two/train_val_videodatainfo.json", info(train_val))
    write(tmp_path / "two/test_videodatainfo.json", info(test))
    write(tmp_path / "one/MSRVTT_data.json", info(train_val | test))
    for folder, names in (("two", ("TrainValVideo", "TestVideo")), ("one", ("videos/all", "videos/all"))):
        root = tmp_path / folder
        touch(root, *(f"{names[n == 7]}/video{n}.mp4" for n in (0, 2, 7)))
        dataset = read(root)
        assert (dataset.format, dataset.split) == ("msr-vtt", "train")
        assert dataset.clips == [Clip(root / names[0] / "video0.mp4", f"{READ[0]} 0")]  # not cut again
        assert left_out(dataset) == ["no such file: video1.mp4"]
        for purpose, split, number in (("validation", "validate", 2), ("test", "test", 7)):
            dataset = read(root, purpose=purpose)  # type: ignore[arg-type]
            assert dataset.split == split
            assert found(dataset, root) == {f"{names[number == 7]}/video{number}.mp4": f"{READ[0]} {number}"}
        with pytest.raises(InputError, match="has no split train_9k; expected train or validate or test"):
            read(root, SourceConfig(split="train_9k"))


def test_folders_are_searched_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "MSRVTT_data.json", info({0: "train"}))
    for folder in ("", "video/", "videos/all/", "TestVideo/", "TrainValVideo/"):
        touch(tmp_path, f"{folder}video0.mp4")
        assert list(found(read(tmp_path), tmp_path)) == [f"{folder}video0.mp4"]


def test_random_captions_are_a_function_of_seed_and_clip(tmp_path: Path) -> None:
    count = 40
    write(tmp_path / "MSRVTT_data.json", info(dict.fromkeys(range(count), "train")))
    touch(tmp_path, *(f"video{n}.mp4" for n in range(count)))
    random = SourceConfig(captions="random")
    drawn = [[clip.caption for clip in read(tmp_path, random, seed=seed).clips] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {caption.rsplit(" ", 1)[0] for caption in drawn[0]} == set(READ)
    touch(tmp_path / "again", "video3.mp4")
    write(tmp_path / "again/MSRVTT_data.json", info({3: "train"}))
    assert read(tmp_path / "again", random).clips[0].caption == drawn[0][3]


def test_retrieval_lists_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "MSRVTT_data.json", info({0: "train", 1: "validate", 9770: "test"}))
    nine = write(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo0\nvideo5\n")
    test = write(
        tmp_path / "MSRVTT_JSFUSION_test.csv",
        'key,vid_key,video_id,sentence\nret0,msr9770,video9770,"a person, who\nis connecting ""something"""\n',
    )
    touch(tmp_path, *(f"video/video{n}.mp4" for n in (0, 1, 5, 9770)))
    expected = {f"video/video{n}.mp4": f"{READ[0]} {n}" for n in (1, 0)}
    for path, config in ((tmp_path, SourceConfig(split="train_9k")), (nine, None)):
        dataset = read(path, config)
        assert dataset.split == "train_9k" and found(dataset, tmp_path) == expected
        assert left_out(dataset) == ["no caption"]
    assert found(read(test), tmp_path) == {"video/video9770.mp4": 'a person, who is connecting "something"'}
    assert read(tmp_path).split == "train" and read(tmp_path, purpose="test").split == "test"
    (tmp_path / "MSRVTT_data.json").unlink()
    with pytest.raises(InputError, match="MSRVTT_train.9k.csv: has no captions; expected .*MSRVTT_data.json beside it"):
        read(nine)


def test_the_hubs_lists_have_one_caption_or_many(tmp_path: Path) -> None:
    def row(number: int, caption: object) -> dict[str, object]:
        return {**video(number, ""), "video": f"video{number}.mp4", "caption": caption, "source": "MSR-VTT"}

    write(tmp_path / "msrvtt_train_9k.json", [row(0, list(CAPTIONS)), row(1, ["", "second"]), row(2, []), row(3, 5)])
    write(tmp_path / "msrvtt_test_1k.json", [row(9, CAPTIONS[1])])
    touch(tmp_path, *(f"video/video{n}.mp4" for n in (0, 1, 2, 3, 9)))
    dataset = read(tmp_path)
    assert dataset.split == "train_9k"
    assert found(dataset, tmp_path) == {"video/video0.mp4": READ[0], "video/video1.mp4": "second"}
    assert left_out(dataset) == ["no caption"] * 2
    assert found(read(tmp_path, purpose="test"), tmp_path) == {"video/video9.mp4": READ[1]}
    assert read(tmp_path, SourceConfig(split="test_1k")).split == "test_1k"


@pytest.mark.parametrize(
    "content",
    ["[", "3", '{"videos": 3}', '{"videos": [{"video_id": 3, "split": "train"}]}', '{"videos": []}', "[" * 99999],
)
def test_json_of_another_kind(content: str, tmp_path: Path) -> None:
    write(tmp_path / "MSRVTT_data.json", content)
    with pytest.raises(InputError, match=r"MSRVTT_data.json: (is not JSON|expected )"):
        read(tmp_path)
    write(tmp_path / "hub/msrvtt_test_1k.json", content)
    with pytest.raises(InputError, match=r"msrvtt_test_1k.json: (is not JSON|expected )"):
        read(tmp_path / "hub")
