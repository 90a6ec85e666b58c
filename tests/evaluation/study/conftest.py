"""Two folders of four small videos, and a study of them being served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contrastive_i2v.data.shapes import ShapesConfig, render_scene, sample_scene
from contrastive_i2v.data.video import write_strip, write_video
from contrastive_i2v.evaluation.study.pairs import Pair, find_pairs
from contrastive_i2v.evaluation.study.server import StudyServer
from contrastive_i2v.evaluation.study.session import Session
from contrastive_i2v.evaluation.study.store import Design, Store, StudyPair

NAMES = ("00000", "00001", "00002", "00003")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`zebra` and `quagga`: names that nothing else contains. 72x48, 10 frames, a second; captions in both."""
    root = tmp_path_factory.mktemp("study")
    for index, name in enumerate(NAMES):
        scene = sample_scene(ShapesConfig(), "test", index)
        frames = render_scene(scene, frames=10, size=72)[..., 12:60, :]
        for method, shown in (("zebra", frames), ("quagga", frames.flip(-1))):
            write_video(root / method / f"{name}.mp4", shown, 10.0)
            (root / method / f"{name}.txt").write_text(f"{scene.caption}\n")
        write_strip(root / "images" / f"{name}.png", frames[:1])
    return root / "zebra", root / "quagga"


@pytest.fixture
def pairs(folders: tuple[Path, Path]) -> list[Pair]:
    return find_pairs(*folders, images=folders[0].parent / "images")[0]


@pytest.fixture
def design(pairs: list[Pair]) -> Design:
    return Design(
        a="zebra",
        b="quagga",
        seed=0,
        raters=5,
        questions=("quality", "faithfulness"),
        pairs=tuple(
            StudyPair(name=pair.name, caption=pair.caption, sha256_a=f"a{pair.name}", sha256_b=f"b{pair.name}")
            for pair in pairs
        ),
    )


@pytest.fixture
def store(design: Design, tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "study.sqlite", design)
    yield opened
    opened.close()


@pytest.fixture
def serve(pairs: list[Pair]) -> Iterator[Callable[[Store], int]]:
    """Serve a store; returns the port."""
    servers = []

    def start(store: Store) -> int:
        server = StudyServer(Session(store, pairs), ("127.0.0.1", 0))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
