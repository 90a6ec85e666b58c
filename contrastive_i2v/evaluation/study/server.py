"""The study over HTTP: a page, its videos, and a small JSON interface, for raters on this machine or network.

Votes can't be forged by other web pages: a request must name this server as its Host (no DNS rebinding), a POST must
come from its own origin and be JSON, and a rater is known by a header, not by a cookie.
"""

from __future__ import annotations

import io
import ipaddress
import json
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contrastive_i2v.evaluation.study.pairs import read_picture
from contrastive_i2v.evaluation.study.session import Refused, Session
from contrastive_i2v.evaluation.videos import MIME_TYPES

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/study.css": ("study.css", "text/css; charset=utf-8"),
    "/study.js": ("study.js", "text/javascript; charset=utf-8"),
}
HOST = re.compile(r"[\w.-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?")
MAX_BODY = 4096
MAX_CONNECTIONS = 256
"""Open at once, a thread each. One more takes the place of the one that has kept the server waiting the longest."""
CHUNK = 1 << 16
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class StudyServer(ThreadingHTTPServer):
    """Serves one study. `server_port` says where, also for port 0.

    Args:
        session: the study.
        address: host and port.
        allowed_hosts: further names that raters may know this machine by.
        say: gets a line when a rater comes or is done.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        session: Session,
        address: tuple[str, int],
        *,
        allowed_hosts: Sequence[str] = (),
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.session = session
        self.say = say
        named = {"localhost", address[0], socket.gethostname(), f"{socket.gethostname()}.local", *allowed_hosts}
        self.allowed_hosts = {name.lower() for name in named}
        self._connections: dict[socket.socket, bool] = {}  # whether it waits for a request, the longest-waiting first
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        # a name is enough to go on as that rater where nobody else can come: not on a network or behind a proxy
        self.trusts_names = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0]).is_loopback
        self.trusts_names &= not allowed_hosts

    def knows_host(self, host: str) -> bool:
        """Whether a Host header means this machine. An address always does: rebinding needs a name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets around what is no address
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.allowed_hosts
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, unless too many are open and all of them busy."""
        with self._lock:
            if is_full := len(self._connections) >= MAX_CONNECTIONS:
                longest = next((one for one, waits in self._connections.items() if waits), None)
                if longest is not None:
                    del self._connections[longest]
                    with suppress(OSError):
                        longest.shutdown(socket.SHUT_RDWR)  # its thread sees the end, and closes it
                    is_full = False
            if not is_full:
                self._connections[request] = True
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def waits(self, connection: Any, *, waits: bool) -> None:
        """Note that a connection waits for a request, or is being answered."""
        with self._lock:
            if self._connections.pop(connection, None) is not None:
                self._connections[connection] = waits

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet about browsers that hang up in mid-video."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: StudyServer
    protocol_version = "HTTP/1.1"
    server_version = "study"
    sys_version = ""
    timeout = 60
    """Seconds that a connection may keep silent."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each piece of a video says nothing."""

    def _answer(self, serve: Callable[[], None]) -> None:
        self.server.waits(self.connection, waits=False)
        try:
            host = self.headers["Host"] or ""
            if not HOST.fullmatch(host) or not self.server.knows_host(host):
                raise Refused(
                    HTTPStatus.FORBIDDEN,
                    "This address isn't known to the study; whoever serves it can allow it with --allowed-hosts NAME.",
                )
            try:
                serve()
            except sqlite3.Error as error:  # a full disk, say
                self.server.say(f"an answer could not be saved or read: {error}")
                raise Refused(
                    HTTPStatus.INTERNAL_SERVER_ERROR, "This could not be saved. Please tell whoever runs the study."
                ) from error
        except Refused as refused:
            self.close_connection = self.command == "POST"  # its body may be unread
            if "text/html" in (self.headers["Accept"] or ""):  # a person's address bar
                self._send(refused.message.encode(), "text/plain; charset=utf-8", refused.status)
            else:
                self._send_json({"error": refused.message}, refused.status)
        finally:
            self.server.waits(self.connection, waits=True)

    def _get(self) -> None:
        session, path = self.server.session, self.path.partition("?")[0]
        if path in PAGE:
            name, kind = PAGE[path]
            self._send(_page_file(name), kind)
        elif path == "/welcome":
            self._send_json(session.welcome())
        elif path == "/progress":
            self._send_json(session.progress(session.identify(self.headers["Rater"])))
        elif found := re.fullmatch(r"/pair/([0-9]{1,9})", path):
            self._send_json(session.pair(session.identify(self.headers["Rater"]), int(found[1])))
        elif found := re.fullmatch(r"/video/([0-9a-f]{24})", path):
            self._send_file(session.file(found[1]))
        elif found := re.fullmatch(r"/image/([0-9a-f]{24})", path):
            self._send(_png(session.file(found[1])), "image/png", cache=True)
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "No such page.")

    def _post(self) -> None:
        session, path = self.server.session, self.path
        origin = self.headers["Origin"]
        if origin is not None and _place(origin) != self.headers["Host"].lower():
            raise Refused(HTTPStatus.FORBIDDEN, "Another page may not vote here.")
        if path == "/join":
            joined = session.join(self._json(), key=self.headers["Rater"], by_name=self.server.trusts_names)
            self.server.say(f"{joined['name']}: {joined['done']} of {joined['total']} votes")
            self._send_json(joined)
        elif path == "/vote":
            rater = session.identify(self.headers["Rater"])
            progress = session.vote(rater, self._json())
            if progress["next"] is None:
                self.server.say(f"{rater.name}: done, {progress['total']} votes")
            self._send_json(progress)
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "No such page.")

    def _json(self) -> Any:
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Expected application/json.")
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,9}", lengths[0]) or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Expected one Content-Length.")
        if int(lengths[0]) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Expected at most {MAX_BODY} bytes.")
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            raise Refused(HTTPStatus.BAD_REQUEST, "The request was cut short; send it again.")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "Expected JSON in UTF-8.") from None

    def _send_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value, ensure_ascii=False).encode(), "application/json; charset=utf-8", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, *, cache: bool = False) -> None:
        self._send_head(status, {"Content-Type": kind, "Content-Length": str(len(body))}, cache=cache)
        self.wfile.write(body)

    def _send_head(self, status: HTTPStatus, headers: dict[str, str], *, cache: bool = False) -> None:
        self.send_response(status)
        kept = {"Cache-Control": "private, max-age=3600" if cache else "no-store"}
        for key, value in {**HEADERS, **kept, **headers}.items():
            self.send_header(key, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send_file(self, path: Path) -> None:
        """The file, or the part of it that a Range header asks for (RFC 9110, section 14; one range)."""
        try:
            file = path.open("rb")
        except OSError:
            raise Refused(HTTPStatus.NOT_FOUND, "This video is gone; tell whoever runs the study.") from None
        with file:
            size = file.seek(0, io.SEEK_END)
            wanted = parse_range(self.headers["Range"], size)
            headers = {"Content-Type": MIME_TYPES[path.suffix.lower()], "Accept-Ranges": "bytes"}
            if wanted is not None and not wanted:
                headers |= {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
                self._send_head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
                return
            part = range(size) if wanted is None else wanted
            headers["Content-Length"] = str(len(part))
            if wanted is not None:
                headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
            self._send_head(HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT, headers, cache=True)
            file.seek(part.start)
            left = len(part)
            while left and (block := file.read(min(CHUNK, left))):
                self.wfile.write(block)
                left -= len(block)


def _place(origin: str) -> str | None:
    """Host and port of an Origin header; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def parse_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for, of `size`; None = all, empty = none of those there are.

    What isn't a single range of bytes counts as no header, as RFC 9110 allows.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        return range(max(0, size - int(found[2])), size)
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None
    return range(first, min(last + 1, size))


@lru_cache(maxsize=8)
def _page_file(name: str) -> bytes:
    return (files("contrastive_i2v.evaluation.study") / "page" / name).read_bytes()


@lru_cache(maxsize=32)
def _png(path: Path) -> bytes:
    """The picture alone: an image file's own bytes may name who made it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(read_picture(path).permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
