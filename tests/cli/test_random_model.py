"""`contrastive-i2v random-model`, and what goes on from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrastive_i2v.cli.experiment import Options, train_config
from contrastive_i2v.cli.main import main
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.wan import WanConfig


@pytest.mark.parametrize("kind", ["wan", "ltx-video"])
def test_the_same_seed_writes_the_same_bytes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main(["random-model", "--kind", kind, "--output", str(tmp_path / name), "--seed", seed]) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert load_system(tmp_path / "a").config.kind == kind
    assert load_system(tmp_path / "a").fingerprint != load_system(tmp_path / "c").fingerprint
    assert main(["random-model", "--output", str(tmp_path / "a")]) == 2
    assert "holds a model already" in capsys.readouterr().err
    for kind, said in (("none", "expected one of"), ("consisti2v", "has no tiny random form")):
        assert main(["random-model", "--kind", kind, "--output", str(tmp_path / "d")]) == 2
        assert said in capsys.readouterr().err


def test_an_experiment_starts_from_a_folder(tmp_path: Path) -> None:
    main(["random-model", "--output", str(tmp_path / "model")])
    config = train_config(Options(start=str(tmp_path / "model")), "run", 0)
    assert isinstance(config.system, WanConfig) and (config.steps, config.batch_size) == (300, 8)
    with pytest.raises(InputError, match="start: expected one of weak, packaged, text-to-image, or a folder with"):
        Options(start="nothing")
