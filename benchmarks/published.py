"""The sizes of the published video transformers, as folders of configs without weights, which `plan` and `load_shapes`
open:

    python -m benchmarks.published wan-2.1-1.3b FOLDER

Wan's figures are those of the config.json files in Wan-AI's Diffusers repositories, as diffusers'
scripts/convert_wan_to_diffusers.py states them; LTX-Video's are the defaults of diffusers' classes, which are those of
Lightricks/LTX-Video. UMT5-XXL and T5-XXL are google/umt5-xxl's and google/t5-v1_1-xxl's encoders, CLIP the vision tower
of laion/CLIP-ViT-H-14-laion2B-s32B-b79K. The `-inp` form of 1.3B is Wan 2.1's image-to-video form at the width of 1.3B,
as alibaba-pai/Wan2.1-Fun-1.3B-InP has it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Config = dict[str, Any]

_XXL: Config = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
UMT5_XXL = {**_XXL, "model_type": "umt5", "vocab_size": 256384}
T5_XXL = {**_XXL, "model_type": "t5", "vocab_size": 32128}
CLIP_VIT_H: Config = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
WAN_22_VAE: Config = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,  # shapes need their number alone
    "latents_std": [1.0] * 48,
}


def _wan(heads: int, ffn: int, layers: int, channels: int = 16, *, image: bool = False, **more: Any) -> Config:
    """WanTransformer3DModel's config; `image`: told of it by CLIP's embedding and 20 channels of 36."""
    config = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "ffn_dim": ffn,
        "num_layers": layers,
        "in_channels": 36 if image else channels,
        "out_channels": channels,
        "text_dim": 4096,
    }
    return config | ({"image_dim": 1280, "added_kv_proj_dim": 128 * heads} if image else {}) | more


def _unipc(shift: float) -> Config:
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return {"_class_name": "UniPCMultistepScheduler", **settings}


_FLOW_MATCH: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def _parts(transformer: Config, *, vae: Config | None = None, shift: float = 3.0) -> dict[str, Config]:
    parts = {
        "transformer": transformer,
        "vae": {"_class_name": "AutoencoderKLWan", **(vae or {})},
        "text_encoder": UMT5_XXL,
        "scheduler": _unipc(shift),
    }
    return parts | ({"image_encoder": CLIP_VIT_H} if "image_dim" in transformer else {})


PUBLISHED: dict[str, dict[str, Config]] = {
    "wan-2.1-1.3b": _parts(_wan(12, 8960, 30)),
    "wan-2.1-1.3b-inp": _parts(_wan(12, 8960, 30, image=True)),
    "wan-2.1-14b": _parts(_wan(40, 13824, 40, image=True)),
    "wan-2.2-5b": _parts(_wan(24, 14336, 30, 48), vae=WAN_22_VAE, shift=5.0),
    "ltx-video": {
        "transformer": {"_class_name": "LTXVideoTransformer3DModel"},
        "vae": {"_class_name": "AutoencoderKLLTXVideo"},
        "text_encoder": T5_XXL,
        "scheduler": _FLOW_MATCH,
    },
}
"""Model -> part -> its config: Wan 2.1's text-to-video 1.3B, the image-to-video form of it, image-to-video 14B at 480p,
Wan 2.2's TI2V-5B, and LTX-Video 0.9."""


def write_configs(folder: Path, name: str, **transformer: Any) -> Path:
    """Write a published model's configs, and return the folder.

    Args:
        transformer: what differs of the transformer's, say num_layers=2.
    """
    for part, config in PUBLISHED[name].items():
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        _write(folder / part / file, config | (transformer if part == "transformer" else {}))
    (folder / "tokenizer").mkdir(exist_ok=True)
    if "image_encoder" in PUBLISHED[name]:
        _write(folder / "image_processor" / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"})
    if name == "wan-2.2-5b":  # its first latent is the given frame's
        _write(folder / "model_index.json", {"_class_name": "WanPipeline", "expand_timesteps": True})
    return folder


def _write(file: Path, config: Config) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a published model's configs, without weights.")
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(write_configs(options.folder, options.name))


if __name__ == "__main__":
    main()
