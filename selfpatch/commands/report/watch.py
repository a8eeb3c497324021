"""`selfpatch watch`: the page of a run or a study, served on this machine and renewed while numbers come in."""

import hashlib
import ipaddress
import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from selfpatch.commands.report.run_report import run_page
from selfpatch.commands.report.study_report import study_page
from selfpatch.errors import UserError
from selfpatch.output.folder_lock import owner_of
from selfpatch.output.terminal import say
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.visualization.report.blocks import Page
from selfpatch.visualization.report.page import as_content, as_html

CONTENT = "/content.json"
# A reader that says nothing for so long is let go.
TIMEOUT_S = 20


def watch(out: Path | str, *, host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve the page of a run or a study until Ctrl-C. Reads only.

    Args:
        host: address to listen at; of any other machine's reach unless it is that of this machine alone.
        port: 0: one that is free.

    Raises:
        UserError: `out` is no folder of a run or a study, or the address or port is not to be had.
    """
    source = Source(Path(out))
    try:
        server = Server(source, host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen at host {host}, port {port} ({reason}); give another --port (0: one that is free) or --host"
        ) from error
    try:
        with server:
            shown = f"[{host}]" if ":" in host else host
            say(f"http://{shown}:{server.server_address[1]}/ shows {out} and renews itself; Ctrl-C ends it")
            if not is_loopback(host):
                say(f"warning: whoever reaches {host} over the network can read this page")
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("ended; the run is not touched")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Snapshot(NamedTuple):
    """A page and what it was made of.

    Args:
        tag: changes with any file that the page is made of.
        version: changes with the assets, which are large and are sent only then.
    """

    page: Page
    tag: str
    version: str


class Source:
    """The page as the folder has it now; made again only when a file of it has changed.

    Raises:
        UserError: there is no run and no study in the folder.
    """

    def __init__(self, folder: Path):
        self._folder, self._lock = folder, Lock()
        self._kept: Snapshot | None = None
        if (folder / "study.json").is_file():
            self._make: Callable[[], Page] = self._study
        elif (folder / "config.yaml").is_file():
            self._make = self._run
        else:
            raise UserError(
                f"{folder} is no folder of a run or a study (no config.yaml, no study.json); give the OUT of a "
                "pretrain or study command, once it has begun"
            )

    def _run(self) -> Page:
        is_running = owner_of(self._folder) is not None
        return run_page(RunFolder(self._folder), state="running" if is_running else "not running")

    def _study(self) -> Page:
        return study_page(self._folder, json.loads((self._folder / "study.json").read_text(encoding="utf-8")))

    def snapshot(self) -> Snapshot:
        with self._lock:
            tag = self._tag()
            if self._kept is None or self._kept.tag != tag:
                page = self._make()
                version = hashlib.sha256("".join(map(str, page.assets.items())).encode()).hexdigest()[:16]
                self._kept = Snapshot(page, tag, version)
            return self._kept

    def _tag(self) -> str:
        """Of names, sizes and times of all files that a page is made of."""
        folder = self._folder
        files = [folder / name for name in ("study.json", "config.yaml", "metrics.jsonl", "backbone.safetensors")]
        files += sorted(folder.glob("runs/*/metrics.jsonl")) + sorted(folder.glob("pictures/**/*.*"))
        facts = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := stat_of(file))]
        return hashlib.sha256(repr((facts, owner_of(folder) is not None)).encode()).hexdigest()[:32]


def stat_of(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:
        return None


class Server(ThreadingHTTPServer):
    """Serves two paths, to readers that name this machine."""

    daemon_threads = True

    def __init__(self, source: Source, host: str, port: int):
        self.source, self.host = source, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error of ours."""

    def knows(self, header: str | None) -> bool:
        """True for a Host that is this machine's own name or an address.

        A page of others that gave its own name our address (DNS rebinding) would send that name.
        """
        try:
            name = urlsplit(f"//{header}").hostname if header else None
        except ValueError:
            return False
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in ("localhost", self.host.lower(), socket.gethostname().lower())
        return True


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of / and /content.json; all else is refused."""

    server: Server
    timeout = TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "selfpatch", ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        if not self.server.knows(self.headers.get("Host")):
            self._send(403, "text/plain", b"this name is not that of the machine\n")
        elif url.path not in ("/", CONTENT):
            self._send(404, "text/plain", b"there is only one page\n")
        else:
            try:
                self._send_page(url.path, url.query)
            except (OSError, ValueError, KeyError) as error:  # a file that is just being replaced, or gone
                self._send(503, "text/plain", f"not readable now ({type(error).__name__})\n".encode())

    def _send_page(self, path: str, query: str) -> None:
        page, tag, version = self.server.source.snapshot()
        if path == "/":
            self._send(200, "text/html; charset=utf-8", as_html(page, live=True).encode())
        elif self.headers.get("If-None-Match") == f'"{tag}"':
            self._send(304, "application/json", b"", tag)
        else:
            has_assets = parse_qs(query).get("assets") == [version]
            answer = {
                "content": as_content(page), "assets": None if has_assets else dict(page.assets), "version": version,
            }  # fmt: skip
            self._send(200, "application/json", json.dumps(answer, allow_nan=False).encode(), tag)

    def _send(self, status: int, kind: str, body: bytes, tag: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        } | ({"ETag": f'"{tag}"'} if tag else {})  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is said of requests."""
