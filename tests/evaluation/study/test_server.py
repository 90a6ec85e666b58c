"""Over HTTP: what raters get, what is refused, and ranges of a video."""

from __future__ import annotations

import http.client
import io
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contrastive_i2v.evaluation.study import server as study_server
from contrastive_i2v.evaluation.study.assignment import left_method, shuffled
from contrastive_i2v.evaluation.study.server import StudyServer, parse_range
from contrastive_i2v.evaluation.study.session import Session
from contrastive_i2v.evaluation.study.store import Store

GOOD = {"position": 0, "question": "quality", "side": "left", "reasons": ["sharpness"]}


class Client:
    """A rater without a browser."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.key: str | None = None

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        if self.key:
            headers.setdefault("Rater", self.key)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def ask(self, path: str, body: Any = None) -> Any:
        status, _, content = self.send("GET" if body is None else "POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        status, _, content = self.send(method, path, body, **headers)
        return status, json.loads(content)["error"]

    def join(self, name: str) -> Any:
        joined = self.ask("/join", {"name": name})
        self.key = joined.pop("key")
        return joined


@contextmanager
def running(server: StudyServer) -> Iterator[None]:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def client(store: Store, serve: Callable[[Store], int]) -> Client:
    return Client(serve(store))


def test_a_rater_votes_and_is_recorded(client: Client, store: Store, folders: tuple[Path, Path]) -> None:
    assert client.join(" ana  Maria ") == {
        "name": "ana Maria",
        "done": 0,
        "total": 8,
        "next": {"position": 0, "question": "quality"},
    }
    order = shuffled(0, "ana maria", [pair.name for pair in store.design.pairs])
    pair = client.ask("/pair/2")
    assert set(pair) == {"position", "left", "right", "image", "caption", "answers"}
    assert pair["caption"] == store.design.pairs[int(order[2])].caption and pair["answers"] == {}
    left = left_method(0, "ana maria", order[2])
    zebra, quagga = ((folder / f"{order[2]}.mp4").read_bytes() for folder in folders)
    shown = [client.send("GET", pair[side])[2] for side in ("left", "right")]
    assert shown == ([zebra, quagga] if left == "a" else [quagga, zebra])

    reasons = ["amount_of_motion", "sharpness", "sharpness"]
    vote = {"position": 2, "question": "quality", "side": "right", "reasons": reasons}
    assert client.ask("/vote", vote)["done"] == 1
    assert client.ask("/pair/2")["answers"] == {
        "quality": {"side": "right", "reasons": ["sharpness", "amount_of_motion"]}
    }
    (kept,) = store.votes()
    assert (kept.rater, kept.pair, kept.question) == ("ana Maria", order[2], "quality")
    assert (kept.left, kept.choice) == (left, "b" if left == "a" else "a")
    assert client.ask("/progress")["next"] == {"position": 0, "question": "quality"}


def test_the_end_and_who_may_still_come(client: Client) -> None:
    for name in ("Ana", "Ben", "Cyd", "Dee", "Eva"):
        client.join(name)
    for position in range(4):
        for question, reason in (("quality", "sharpness"), ("faithfulness", "temporal_alignment")):
            vote = {"position": position, "question": question, "side": "left", "reasons": [reason]}
            progress = client.ask("/vote", vote)
    assert progress == {"name": "Eva", "done": 8, "total": 8, "next": None}
    status, message = client.refused("POST", "/join", {"name": "Fay"})
    assert status == 409 and "already has its 5 raters" in message
    assert client.join("eva")["done"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 4}, "No pair 4"),
        ({"position": -1}, "No pair -1"),
        ({"position": True}, "position is True; expected a whole number"),
        ({"position": "0"}, "position is '0'; expected a whole number"),
        ({"question": "beauty"}, "question is 'beauty'; expected one of quality, faithfulness"),
        ({"question": ["quality"]}, "question is"),
        ({"side": "a"}, "side is 'a'; expected left or right"),
        ({"reasons": []}, "reasons is []; expected one or more of sharpness"),
        ({"reasons": ["spatial_alignment"]}, "expected one or more of sharpness"),
        ({"reasons": "sharpness"}, "reasons is 'sharpness'"),
        ({"reasons": [{}]}, "reasons is"),
        ({"extra": 1}, "Expected a JSON object with position, question, reasons, side"),
    ],
)
def test_votes_that_make_no_sense(client: Client, store: Store, change: dict[str, Any], message: str) -> None:
    client.join("Ana")
    status, said = client.refused("POST", "/vote", {**GOOD, **change})
    assert status == (404 if "No pair" in message else 400) and message in said
    assert store.votes() == []


@pytest.mark.fault("a stranger enters a known rater's name on a network", "they don't get that rater's key")
@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"host": "127.0.0.1", "allowed_hosts": ["lab.example"]}])
def test_beyond_this_machine_a_name_is_no_key(store: Store, pairs: list[Any], options: dict[str, Any]) -> None:
    server = StudyServer(Session(store, pairs), (options.pop("host"), 0), **options)
    with running(server):
        ana, stranger = Client(server.server_port), Client(server.server_port)
        ana.join("Ana")
        ana.ask("/vote", GOOD)
        key = ana.key or ""
        for given in (None, "", key[:-1], key + "0"):
            stranger.key = given
            status, message = stranger.refused("POST", "/join", {"name": " aNA "})
            assert status == 409 and "This name is taken" in message
        ben = Client(server.server_port)
        ben.join("Ben")
        assert ben.refused("POST", "/join", {"name": "Ana"})[0] == 409
        assert ana.join("ANA")["done"] == 1 and ana.key == key
    assert [rater.name for rater in store.raters()] == ["Ana", "Ben"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_a_name_is_enough(store: Store, pairs: list[Any], host: str) -> None:
    try:
        server = StudyServer(Session(store, pairs), (host, 0))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    assert server.trusts_names
    server.server_close()


@pytest.mark.fault("connections are opened and kept silent", "the most silent ones are dropped; raters get in")
def test_silent_connections_do_not_keep_raters_out(
    store: Store, pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_server, "MAX_CONNECTIONS", 4)
    server = StudyServer(Session(store, pairs), ("127.0.0.1", 0))
    with running(server):
        rater = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        rater.request("GET", "/welcome")
        assert rater.getresponse().read()
        address = ("127.0.0.1", server.server_port)
        silent = []
        for _ in range(20):
            silent.append(socket.create_connection(address, timeout=10))
            silent[-1].sendall(b"GET /welcome HT")  # and no more
        assert Client(server.server_port).ask("/welcome")["pairs"] == 4
        assert len(server._connections) <= 4
        assert silent[0].recv(10) == b""  # closed
        for one in silent:
            one.close()
        rater.close()


def test_busy_connections_are_not_dropped(store: Store, pairs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_server, "MAX_CONNECTIONS", 1)
    session = Session(store, pairs)
    inside, go_on = threading.Event(), threading.Event()

    def welcome() -> dict[str, Any]:
        inside.set()
        assert go_on.wait(10)
        return {"pairs": 0}

    monkeypatch.setattr(session, "welcome", welcome)
    server = StudyServer(session, ("127.0.0.1", 0))
    with running(server):
        rater = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        rater.request("GET", "/welcome")
        assert inside.wait(10)
        late = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
        assert late.recv(10) == b""  # one too many
        go_on.set()
        assert rater.getresponse().read() == b'{"pairs": 0}'
        rater.close()
        late.close()


@pytest.mark.fault("50 browsers come at once", "they are queued")
def test_a_burst_of_connections_is_queued(store: Store, pairs: list[Any]) -> None:
    server = StudyServer(Session(store, pairs), ("127.0.0.1", 0))  # nobody accepts yet
    assert server.request_queue_size == 128
    waiting = [socket.create_connection(("127.0.0.1", server.server_port), timeout=2) for _ in range(50)]
    for one in waiting:
        one.close()
    server.server_close()


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "=cmd()", "<b>", "a\nb\x00", 7, None, "a;b"])
def test_names_that_are_none(client: Client, store: Store, name: Any) -> None:
    status, message = client.refused("POST", "/join", {"name": name})
    assert (status, store.raters()) == (400, []) and "Please enter a name" in message


def test_names_of_all_languages(client: Client) -> None:
    names = ["Zoë", "Łukasz Żak", "李小龙", "O’Neil", "J. R. R."]
    assert [client.join(name)["name"] for name in names] == names


def test_strangers_are_asked_who_they_are(client: Client) -> None:
    client.join("Ana")
    key = client.key or ""
    for wrong in (None, "", "1.", key[:-1], key + "0", f"2{key[1:]}", "é.1", "1" * 30):
        client.key = wrong
        assert client.refused("GET", "/pair/0") == (401, "Please enter your name.")
        assert client.refused("POST", "/vote", GOOD)[0] == 401
        assert client.refused("GET", "/progress")[0] == 401


@pytest.mark.fault("another page, or another name of this machine, asks a study", "refused with 403")
def test_other_pages_may_neither_vote_nor_read(client: Client, store: Store) -> None:
    client.join("Ana")
    for origin in ("http://[", "http://[::1", "http://evil.example", "null", f"http://127.0.0.1:{client.port + 1}"):
        assert client.refused("POST", "/vote", GOOD, Origin=origin)[0] == 403
    for host in (f"evil.example:{client.port}", "", "a b", "[::1", "[:::::::::]", "localhost.evil.example"):
        assert client.refused("GET", "/welcome", Host=host)[0] == 403
        assert client.refused("POST", "/vote", GOOD, Host=host, Origin=f"http://{host}")[0] == 403
    assert store.votes() == []
    for host in ("localhost:9000", "LOCALHOST", "192.168.0.7:8000", "[::1]:8000"):
        assert client.send("POST", "/vote", GOOD, Host=host, Origin=f"http://{host}")[0] == 200


def test_further_names_can_be_allowed(store: Store, pairs: list[Any]) -> None:
    server = StudyServer(Session(store, pairs), ("127.0.0.1", 0), allowed_hosts=["Lab.example"])
    assert server.knows_host("lab.example:8000") and not server.knows_host("b.example")
    server.server_close()


@pytest.mark.fault(
    "a study is sent what is too large, or no JSON", "refused by its kind, and nothing is read beyond the limit"
)
def test_bodies_are_bounded_json(client: Client) -> None:
    client.join("Ana")
    kind = {"Content-Type": "application/json"}
    assert client.refused("POST", "/vote", b"{", **kind) == (400, "Expected JSON in UTF-8.")
    assert client.refused("POST", "/vote", b"\xff\xfe\x00", **kind) == (400, "Expected JSON in UTF-8.")
    assert client.refused("POST", "/vote", b"[" * 4000, **kind)[0] == 400
    assert client.refused("POST", "/vote", b"[]", **kind)[0] == 400
    assert client.refused("POST", "/vote", b" " * 4097, **kind) == (413, "Expected at most 4096 bytes.")
    assert client.refused("POST", "/vote", b"position=0", **{"Content-Type": "text/plain"})[0] == 415
    assert client.refused("POST", "/vote", **{**kind, "Content-Length": "-1"})[0] == 411


@pytest.mark.fault("a vote's request is cut short or says its length twice", "it is refused and counts for nothing")
@pytest.mark.parametrize(
    ("more", "status"),
    [("Content-Length: {0}1\r\n", 400), ("Content-Length: {0}\r\nContent-Length: 4\r\n", 411), ("", 411),
     ("Content-Length: {0}\r\nTransfer-Encoding: chunked\r\n", 411)],
)  # fmt: skip
def test_a_request_that_is_not_whole_does_not_count(client: Client, store: Store, more: str, status: int) -> None:
    client.join("Ana")
    body = json.dumps(GOOD)
    head = f"POST /vote HTTP/1.1\r\nHost: localhost\r\nRater: {client.key}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(f"{head}{more.format(len(body))}\r\n{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1 << 16).startswith(f"HTTP/1.1 {status} ".encode())
    assert store.votes() == []


@pytest.mark.parametrize(
    "path",
    ["/../store.py", "/video/../../study.sqlite", "/video/" + "0" * 24, "/video/00000.mp4", "/page/study.js",
     "/pair/x", "/%2e%2e/index.html", "/study.sqlite"],
)  # fmt: skip
def test_nothing_else_is_served(client: Client, path: str) -> None:
    client.join("Ana")
    assert client.refused("GET", path)[0] == 404


def test_video_by_ranges(client: Client, folders: tuple[Path, Path]) -> None:
    client.join("Ana")
    url = client.ask("/pair/0")["left"]
    status, headers, whole = client.send("GET", url)
    size = len(whole)
    assert (status, headers["Accept-Ranges"], headers["Content-Type"]) == (200, "bytes", "video/mp4")
    assert whole in [path.read_bytes() for folder in folders for path in folder.glob("*.mp4")]
    for wanted, part in (("0-99", whole[:100]), ("100-", whole[100:]), ("-7", whole[-7:]), (f"5-{size}", whole[5:])):
        status, headers, body = client.send("GET", url, Range=f"bytes={wanted}")
        start = whole.index(part)
        assert (status, body) == (206, part)
        assert headers["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/{size}"
    status, headers, body = client.send("GET", url, Range=f"bytes={size}-")
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{size}", b"")
    for ignored in ("bytes=9-3", "bytes=0-1,3-4", "pixels=0-1", "bytes=-"):
        assert client.send("GET", url, Range=ignored)[2] == whole


def test_parse_range_at_the_edges() -> None:
    assert parse_range("bytes=0-0", 10) == range(1)
    assert parse_range("bytes=-20", 10) == range(10)
    assert parse_range(None, 10) is None
    for nothing in ("bytes=10-", "bytes=-0"):
        assert parse_range(nothing, 10) is not None and len(parse_range(nothing, 10) or ()) == 0


def test_pages_and_images_say_nothing_but_themselves(client: Client, folders: tuple[Path, Path]) -> None:
    client.join("Ana")
    pair = client.ask("/pair/0")
    received = [client.send("GET", path) for path in ("/", "/study.css", "/study.js", "/welcome", pair["image"])]
    for status, headers, body in received:
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
        assert headers["Server"].strip() == "study" and "Last-Modified" not in headers
        text = (str(headers) + body.decode("latin-1")).lower()
        assert "zebra" not in text and "quagga" not in text and "http://" not in text.replace("http://127", "")
    assert Image.open(io.BytesIO(received[-1][2])).size == (72, 48)


@pytest.mark.fault(
    "the disk is full while somebody votes", "the rater and whoever serves are told; no vote is said to be saved"
)
def test_a_vote_that_cannot_be_saved_is_said(store: Store, pairs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    server = StudyServer(Session(store, pairs), ("127.0.0.1", 0), say=said.append)
    with running(server):
        rater = Client(server.server_port)
        rater.join("Ana")

        def full(vote: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(store, "record", full)
            status, message = rater.refused("POST", "/vote", GOOD)
        assert (status, message) == (500, "This could not be saved. Please tell whoever runs the study.")
        assert said[-1] == "an answer could not be saved or read: database or disk is full"
        assert rater.ask("/vote", GOOD)["done"] == 1


def test_a_refusal_in_an_address_bar_is_plain_text(client: Client) -> None:
    status, headers, body = client.send("GET", "/", Host="evil.example", Accept="text/html,*/*")
    assert (status, headers["Content-Type"]) == (403, "text/plain; charset=utf-8")
    assert body.decode().startswith("This address isn't known to the study") and b"{" not in body


@pytest.mark.fault("a study's video is deleted while it is served", "404, and the page says so")
def test_a_video_that_went_missing(client: Client, pairs: list[Any], tmp_path: Path, store: Store) -> None:
    session = Session(store, pairs)
    token = next(iter(session._files))
    session._files[token] = tmp_path / "gone.mp4"
    server = StudyServer(session, ("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    assert Client(server.server_port).refused("GET", f"/video/{token}")[0] == 404
    server.shutdown()
    server.server_close()
