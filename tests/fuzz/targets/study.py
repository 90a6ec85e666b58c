"""The study's server: whatever comes, it answers or hangs up, and counts only votes that it answered with 200."""

from __future__ import annotations

import json
import random
import re
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing import mutate
from PIL import Image

from contrastive_i2v.evaluation.study.pairs import Pair
from contrastive_i2v.evaluation.study.server import StudyServer
from contrastive_i2v.evaluation.study.session import Session
from contrastive_i2v.evaluation.study.store import Design, Store, StudyPair

SECONDS = 10
WORDS = (
    b"\r\n", b"\n", b"\r\n\r\n", b"GET ", b"POST ", b"PUT ", b"HTTP/1.1", b"HTTP/0.9", b"HTTP/9.9", b"Host: ",
    b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
    b"Origin: http://[::1\r\n", b"%00", b"..", b"Range: bytes=0-\r\n", b"Range: bytes=-5\r\n", b"bytes=9-1",
    b"/join", b"/vote", b"/pair/", b"9" * 5000, b"-1", b"1e9", b"null", b"true", b"[" * 3000, b"\xff\xfe",
    b"\\ud800", b"x" * 70000, b"X: y\r\n" * 200, b"application/json", b"; charset=utf-16",
)  # fmt: skip


class Server(StudyServer):
    """Keeps what goes wrong in its threads; hang-ups are no fault of the server."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.faults.append(error)

    faults: list[BaseException | None] = []


class Target:
    def __init__(self, folder: Path) -> None:
        pairs = []
        for name in ("0", "1"):
            a, b, image = (folder / file for file in (f"a{name}.mp4", f"b{name}.mp4", f"{name}.png"))
            for video in (a, b):
                video.write_bytes(bytes(range(200)))
            Image.new("RGB", (4, 4)).save(image)
            pairs.append(Pair(name=name, caption="x", a=a, b=b, image=image))
        known = tuple(StudyPair(name=pair.name, caption="x", sha256_a="a", sha256_b="b") for pair in pairs)
        design = Design(a="zebra", b="quagga", seed=0, raters=3, questions=("quality", "faithfulness"), pairs=known)
        self.store = Store(folder / "study.sqlite", design)
        session = Session(self.store, pairs)
        key = session.join({"name": "Ann"})["key"]
        shown = session.pair(session.identify(key), 0)
        self.secrets = {b"KEY": key.encode(), b"/LEFT": shown["left"].encode(), b"/IMAGE": shown["image"].encode()}
        self.server = Server(session, ("127.0.0.1", 0))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        vote = {"position": 0, "question": "quality", "side": "left", "reasons": ["sharpness"]}
        self.seeds = [
            _request("GET", "/"),
            _request("GET", "/progress"),
            _request("GET", "/pair/1"),
            _request("GET", "/LEFT").replace(b"\r\n\r\n", b"\r\nRange: bytes=10-20\r\n\r\n"),
            _request("GET", "/IMAGE"),
            _request("POST", "/join", {"name": "Bob"}),
            _request("POST", "/vote", vote),
            _request("POST", "/vote", vote | {"side": "right"}),
        ]

    def draw(self, rng: random.Random) -> bytes:
        """A request; what every study makes anew stands in it as a word that `check` replaces."""
        return mutate(rng, rng.choice(self.seeds), *self.seeds, words=WORDS)

    def check(self, case: bytes) -> None:
        before, request = self._votes(), case
        for word, secret in self.secrets.items():
            request = request.replace(word, secret)
        answer = self._exchange(request)
        assert not self.server.faults, repr(self.server.faults.pop())
        assert b"Traceback" not in answer, answer[-999:]
        if self._votes() != before:
            assert b"HTTP/1.1 200" in answer and b"POST" in case, answer[:99]
            assert _holds_a_whole_post(case), "a request that was cut short counted"
        assert self._exchange(self.seeds[0]).startswith(b"HTTP/1.1 200"), "it no longer answers"

    def _votes(self) -> tuple[object, ...]:
        return self.store.raters(), self.store.votes(), self.store.votes(history=True)

    def _exchange(self, request: bytes) -> bytes:
        """What comes back until the server hangs up; raises TimeoutError where it doesn't."""
        with socket.create_connection(self.server.server_address[:2], timeout=SECONDS) as connection:
            answer = b""
            try:
                connection.sendall(request)
                with suppress(OSError):  # it hung up already
                    connection.shutdown(socket.SHUT_WR)
                while block := connection.recv(1 << 16):
                    answer += block
            except ConnectionError:  # hung up before it had read all
                pass
            return answer


def _request(method: str, path: str, body: object = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nRater: KEY\r\n{length}\r\n".encode() + content


def _holds_a_whole_post(case: bytes) -> bool:
    """Lines may end in a bare CR, as Python's own parser has it: no browser sends one."""
    for found in re.finditer(rb"(?i)content-length:[ \t]*([0-9]+)[ \t]*[\r\n]", case):
        end = re.compile(rb"\r?\n\r?\n").search(case, found.end() - 1)
        if end and len(case) - end.end() >= int(found[1]):
            return True
    return False
