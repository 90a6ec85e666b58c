"""Fixtures shared by the suite: a complete, tiny, randomly initialised InstructPix2Pix; no download."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter, which has to be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

THREADS = torch.get_num_threads()
LEFT_OUT = pytest.StashKey["Counter[str]"]()


def pytest_runtest_setup() -> None:
    """A test starts with the threads that the run started with. The real UMAP leaves torch with one a core, whatever
    OMP_NUM_THREADS says: trainings after it took 20 times as long, and had other bits than in a process of their own.
    """
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Counts what `-m "not (...)"` leaves out: a test under the first marker of the expression that it has."""
    for item in items:
        for kind in filter(item.get_closest_marker, re.findall(r"\w+", item.config.getoption("markexpr"))):
            item.config.stash.setdefault(LEFT_OUT, Counter())[kind] += 1
            break


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of pytest-xdist's processes, which alone collect
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(LEFT_OUT, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each process of pytest-xdist collects everything, so each leaves out the same."""
    if counts := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = Counter(counts)


@pytest.hookimpl(trylast=True)  # below the list of slow tests
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if counts := config.stash.get(LEFT_OUT, None):
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
        terminalreporter.write_line(f"left out: {counts.total()} slow tests ({kinds}); make test-all runs them")


WORDS = ("a", "red", "ball", "rolls", "to", "the", "left", "right", "make", "it", "snow")


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocab = ["<|startoftext|>", "<|endoftext|>"]
    vocab += [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    merges = []
    for word in WORDS:
        head = word[0] if len(word) > 1 else ""
        for letter in word[1:]:
            tail = letter + ("</w>" if len(head) == len(word) - 1 else "")
            if (head, tail) not in merges:
                merges.append((head, tail))
                vocab.append(head + tail)
            head += letter
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=12)


def _parts(in_channels: int, seed: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler,
    }
    for module in (vae, text_encoder, unet):
        module.eval()
    return parts


@pytest.fixture(scope="session")
def build_pipeline() -> Callable[..., Any]:
    """build_pipeline(in_channels=8, seed=0) -> StableDiffusionInstructPix2PixPipeline with random weights."""

    def build(in_channels: int = 8, seed: int = 0) -> Any:
        from diffusers import StableDiffusionInstructPix2PixPipeline

        pipeline = StableDiffusionInstructPix2PixPipeline(
            **_parts(in_channels, seed),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="session")
def pipeline_folder(build_pipeline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted (8-channel) model in diffusers' folder layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    build_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_folder(build_pipeline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image (4-channel) model in diffusers' folder layout, with Stable Diffusion 1.5's PNDM."""
    from diffusers import PNDMScheduler

    folder = tmp_path_factory.mktemp("base")
    pipeline = build_pipeline(in_channels=4)
    pipeline.register_modules(
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            steps_offset=1,
        )
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(pipeline_folder: Path) -> Any:
    """The same model through the package's own loader. Shared by the session: don't train it in place."""
    from contrastive_i2v.models import load_system

    return load_system(pipeline_folder)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` (6 clips) and `test` (2) of 16x16 moving shapes, one second each."""
    from contrastive_i2v.data.shapes import ShapesConfig, make_shapes

    folder = tmp_path_factory.mktemp("clips")
    make_shapes(folder, ShapesConfig(train_clips=6, test_clips=2, size=16, frames=25), progress=False)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 12-d embeddings with random weights, in half precision as many are saved."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    pieces = ["<|startoftext|>", "<|endoftext|>"]
    pieces += [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(pieces), "max_position_embeddings": 10, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **text, "pad_token_id": 1},
            vision_config={**sizes, "image_size": 16, "patch_size": 8},
            projection_dim=12,
        )
    )
    path = tmp_path_factory.mktemp("clip")
    model.half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def train_config(pipeline_folder: Path, clips: Path, tmp_path: Path) -> Any:
    """A run of 8 steps on those clips with the random model; seconds on a CPU."""
    from contrastive_i2v.data.frames import FramesConfig
    from contrastive_i2v.training.config import DataConfig, OptimizerConfig, PreviewConfig, TrainConfig

    return TrainConfig(
        output=tmp_path / "run",
        model=str(pipeline_folder),
        steps=8,
        batch_size=4,
        mixed_precision="no",
        ema_decay=0.9,
        log_every=2,
        checkpoint_every=2,
        data=DataConfig(
            path=clips / "train",
            cache_dir=tmp_path / "latents",
            resolution=16,
            frames=FramesConfig(offset_std=1.0, windows_per_clip=3),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        preview=PreviewConfig(every=0),
    )


@pytest.fixture(scope="session")
def break_later() -> Callable[[Path], None]:
    """break_later(mp4): its header and first three packets stay, the others become zeros: it opens and breaks later."""
    import av

    def damage(path: Path) -> None:
        with av.open(str(path)) as container:
            places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        content = bytearray(path.read_bytes())
        for start, size in places[3:]:
            content[start : start + size] = bytes(size)
        path.write_bytes(content)

    return damage
