"""From the name on the command line to an extractor.

    images   efficientnet-lite0 | inception:FILE | dino:FOLDER_OR_ID | clip:FOLDER_OR_ID
    videos   transnetv2 | i3d:FILE
    texts    minilm
    flow     dis | raft:FILE
    I2V background    dreamsim:FILE

The names without a colon work offline from installed packages; the others load what the user has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors import base
from contrastive_i2v.evaluation.extractors.clip import CLIP
from contrastive_i2v.evaluation.extractors.dino import DINO
from contrastive_i2v.evaluation.extractors.dreamsim import DreamSim
from contrastive_i2v.evaluation.extractors.efficientnet import EfficientNetLite0
from contrastive_i2v.evaluation.extractors.i3d import I3D
from contrastive_i2v.evaluation.extractors.inception import Inception
from contrastive_i2v.evaluation.extractors.minilm import MiniLM
from contrastive_i2v.evaluation.extractors.optical_flow import DISFlow
from contrastive_i2v.evaluation.extractors.raft import RAFT
from contrastive_i2v.evaluation.extractors.transnet import TransNetV2

Device = str | torch.device

IMAGE = "efficientnet-lite0"
VIDEO = "transnetv2"
TEXT = "minilm"
FLOW = "dis"


def load_image_extractor(name: str = IMAGE, device: Device = "cpu") -> base.ImageExtractor:
    """An image extractor; "efficientnet-lite0" and "inception:FILE" are also a base.Classifier.

    Raises:
        InputError: the name is unknown, or its package or weights are missing or don't fit.
    """
    kind, source = _parse(name, "image", (IMAGE, "inception:FILE", "dino:FOLDER_OR_ID", "clip:FOLDER_OR_ID"))
    if kind == "inception":
        return Inception(source, device)
    if kind == "dino":
        return DINO(source, device)
    if kind == "clip":
        return CLIP(source, device)
    return EfficientNetLite0(device)


def load_video_extractor(name: str = VIDEO, device: Device = "cpu") -> base.VideoExtractor:
    """A video extractor. Raises InputError as `load_image_extractor` does."""
    kind, source = _parse(name, "video", (VIDEO, "i3d:FILE"))
    return I3D(source, device) if kind == "i3d" else TransNetV2(device)


def load_clip(source: str | None, device: Device = "cpu") -> base.TextImageExtractor | None:
    """CLIP from a folder or hub id, with or without "clip:" before it; None = no CLIP, and no metric that needs it.

    Raises:
        InputError: it can't be loaded or lacks parameters.
    """
    return None if source is None else CLIP(source.removeprefix("clip:"), device)


def load_text_extractor(name: str = TEXT, device: Device = "cpu") -> base.TextExtractor:
    """A text extractor. Raises InputError as `load_image_extractor` does."""
    _parse(name, "text", (TEXT,))
    return MiniLM(device)


def load_flow(name: str = FLOW, device: Device = "cpu") -> base.FlowExtractor:
    """An optical flow; "dis" runs on the CPU whatever `device`. Raises InputError as `load_image_extractor` does."""
    kind, source = _parse(name, "flow", (FLOW, "raft:FILE"))
    return RAFT(source, device) if kind == "raft" else DISFlow()


def load_background(name: str, device: Device = "cpu") -> base.ImageExtractor:
    """An image extractor for VBench's I2V background. Raises InputError as `load_image_extractor` does."""
    _, source = _parse(name, "I2V background", ("dreamsim:FILE",))
    return DreamSim(source, device)


def _parse(name: str, what: str, forms: Sequence[str]) -> tuple[str, str]:
    """`name` as (kind, source), where it has one of the forms "kind" (offline, no source) and "kind:WHAT"."""
    kind, _, source = name.partition(":")
    form = next((form for form in forms if form.partition(":")[0] == kind), None)
    if form is None or (source and ":" not in form):
        raise InputError(f"{what} extractor {name!r} is unknown; expected {' or '.join(forms)}")
    if ":" in form and not source:
        raise InputError(f"{what} extractor {name!r} doesn't say where its weights are; expected {form}")
    return kind, source
