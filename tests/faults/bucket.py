"""A bucket on this machine: moto's server, and before it a proxy that answers 503, too slowly, short or not at all."""

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key-of-the-test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}


class Proxy(NamedTuple):
    """
    Args:
        requests: the object, of every request for a part of one; "" of others.
        set_fault: what becomes of a request for a part, by its number: "", "503", "short", "slow" or "cut".
    """

    url: str
    requests: list[str]
    set_fault: Callable[[Callable[[int], str]], None]


@contextmanager
def bucket(folder: Path, name: str = "images") -> Iterator[Proxy]:
    """The files below a folder in a bucket, behind a proxy."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        client = boto3.client("s3", endpoint_url=f"http://{HOST}:{port}", region_name="us-east-1", **{
            "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        })  # fmt: skip
        client.create_bucket(Bucket=name)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=name, Key=os.fspath(path.relative_to(folder)), Body=path.read_bytes())
        client.close()
        with _proxy(port) as proxy:
            yield proxy
    finally:
        server.stop()


@contextmanager
def _proxy(port: int) -> Iterator[Proxy]:
    requests: list[str] = []
    lock, released = threading.Lock(), threading.Event()
    fault: list[Callable[[int], str]] = [lambda _: ""]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_GET(self) -> None:
            with lock:
                is_part = "Range" in self.headers
                number = sum(bool(line) for line in requests) if is_part else -1
                requests.append(self.path if is_part else "")
            kind = fault[0](number) if is_part else ""
            if kind == "503":
                self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            if kind == "slow":
                released.wait(30)  # longer than whoever asks waits
            upstream = http.client.HTTPConnection(HOST, port, timeout=30)
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body, headers = answer.read(), answer.getheaders()
            upstream.close()
            if kind == "short":  # whole, by its headers
                body = body[: len(body) // 2]
                headers = [(key, value) for key, value in headers if key.lower() != "content-range"]
            self._answer(answer.status, headers, body, cut=kind == "cut")

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, headers: list, body: bytes, *, cut: bool = False) -> None:
            dropped = ("content-length", "transfer-encoding", "connection", "date", "server")
            length = {key.lower(): value for key, value in headers}.get("content-length", "0")
            self.send_response(status)
            for key, value in headers:
                if key.lower() not in dropped:
                    self.send_header(key, value)
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                try:
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                except OSError:
                    cut = True  # whoever asked has gone
            if cut:
                self.close_connection = True
                self.connection.close()

    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Proxy(f"http://{HOST}:{server.server_port}", requests, lambda change: fault.__setitem__(0, change))
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
