"""kill -9 in the middle of voting: every vote that a rater was told is saved, is."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from contrastive_i2v.evaluation.study.store import Store

RATERS = ("Ana", "Ben", "Cyd", "Dee", "Eva")


def start(folders: tuple[Path, Path], path: Path) -> tuple[subprocess.Popen[str], str]:
    """A served study in a process of its own, and its address."""
    code = "import sys; from contrastive_i2v.cli.study import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", code, "serve", "--a", str(folders[0]), "--b", str(folders[1])]
    command += ["--output", str(path), "--port", "0"]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=path.parent,
        # a shell lets what it starts in the background ignore it, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert server.stdout
    for line in server.stdout:
        if line.startswith("open:"):
            return server, line.split()[1]
    raise AssertionError("the study did not start")


def ask(url: str, body: object, key: str = "") -> Any:
    headers = {"Content-Type": "application/json", "Rater": key}
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, content, headers), timeout=20) as answer:
        return json.load(answer)


def side_of(turn: int) -> str:
    """Each round over the four pairs changes every vote."""
    return "left" if turn // 4 % 2 else "right"


@pytest.mark.fault("`kill -9` while five people vote", "no vote that the page showed as saved is lost")
@pytest.mark.processes
def test_no_vote_is_lost_to_kill_9(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    server, url = start(folders, path)
    saved = dict.fromkeys(RATERS, -1)  # the last turn that the server said it kept

    def rate(name: str) -> None:
        try:
            key = ask(f"{url}/join", {"name": name})["key"]
            for turn in range(10_000):
                vote = {"position": turn % 4, "question": "quality", "side": side_of(turn), "reasons": ["sharpness"]}
                ask(f"{url}/vote", vote, key)
                saved[name] = turn
        except (OSError, http.client.HTTPException):  # the server is dead
            return

    threads = [threading.Thread(target=rate, args=(name,)) for name in RATERS]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while min(saved.values()) < 5:
        assert time.monotonic() < deadline, saved
        time.sleep(0.01)
    os.kill(server.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert server.wait() == -signal.SIGKILL

    server, url = start(folders, path)
    for name in RATERS:
        joined = ask(f"{url}/join", {"name": name})
        assert joined["done"] == 4 and joined["next"] == {"position": 0, "question": "faithfulness"}
        for back in range(3):  # the fourth may hold a vote that was kept but not yet answered
            turn = saved[name] - back
            answers = ask(f"{url}/pair/{turn % 4}", None, joined["key"])["answers"]
            assert answers["quality"]["side"] == side_of(turn)
    server.send_signal(signal.SIGINT)
    output, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and "stopped with 20 of 40 votes" in output

    store = Store(path)
    recorded, answered = len(store.votes()) + len(store.votes(history=True)), sum(saved.values()) + len(RATERS)
    store.close()
    assert answered <= recorded <= answered + len(RATERS)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
