"""`selfpatch watch`: two paths for this machine alone, content that follows the run, and a clean end."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from selfpatch import cli
from selfpatch.commands.report.watch import Server, Source
from tests.visualization.made_pages import made_run, made_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_run(tmp_path_factory.mktemp("watched") / "run")


@pytest.fixture(scope="module")
def server(run):
    with Server(Source(run), "127.0.0.1", 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    def call(path: str = "/", method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    return call


def test_the_page_and_its_content(ask):
    answer, body = ask()
    assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert b'data-live="yes"' in body and b"connect-src 'self'" in body
    assert answer.getheader("X-Frame-Options") == "DENY" and answer.getheader("X-Content-Type-Options") == "nosniff"
    answer, body = ask("/content.json")
    found = json.loads(body)
    assert found["content"]["badge"] == "Pretraining run" and found["assets"]
    assert json.loads(ask(f"/content.json?assets={found['version']}")[1])["assets"] is None
    again, body = ask("/content.json", If_None_Match=answer.getheader("ETag"))
    assert (again.status, body) == (304, b"")
    assert ask("/", "HEAD")[1] == b""


def test_content_follows_the_run(ask, run):
    answer, _ = ask("/content.json")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 61, "loss": 1.25}) + "\n")
    newer, body = ask("/content.json", If_None_Match=answer.getheader("ETag"))
    assert newer.status == 200
    tiles = json.loads(body)["content"]["sections"][0]["blocks"][0]["tiles"]
    assert {"label": "Loss", "value": "1.250", "note": "least 1.250 at step 61", "tone": ""} in tiles


@pytest.mark.parametrize(
    "path",
    ["/config.yaml", "/../config.yaml", "/%2e%2e/etc/passwd", "//evil.com/", "/pictures/pca.png", "/content.json/x"],
)
def test_no_other_path(path, ask):
    answer, body = ask(path)
    assert answer.status == 404 and b"crops" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_no_other_method(method, ask):
    assert ask("/", method)[0].status == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.com", 403), ("evil.com:80", 403), ("localhost.evil.com", 403), ("", 403), ("[::1", 403),
        ("localhost:1234", 200), ("127.0.0.1", 200), ("[::1]:80", 200), (socket.gethostname(), 200),
    ],
)  # fmt: skip
def test_other_names_are_refused(host, status, ask):
    """A page of others whose name was pointed at this machine asks under that name."""
    for path in ("/", "/content.json"):
        answer, body = ask(path, Host=host)
        assert answer.status == status and (status == 200 or b"loss" not in body)


def test_a_file_that_cannot_be_read_just_now(tmp_path, ask, server, run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("no: [settings")
    assert ask("/content.json")[0].status == 503
    (run / "config.yaml").write_text(config)
    assert ask("/content.json")[0].status == 200


def test_a_study_is_watched_too(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(made_study(tmp_path)))
    assert Source(tmp_path).snapshot().page.badge == "Study"


def test_mistakes(tmp_path, run, capsys):
    def refused(*arguments: object) -> str:
        assert cli.main(["watch", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "no folder of a run or a study" in refused(tmp_path)
    assert "--port" in refused(run, "--port", 70000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "give another --port" in refused(run, "--port", taken.getsockname()[1])
    assert "cannot listen at host 203.0.113.1" in refused(run, "--host", "203.0.113.1")


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_ends_it(number, run):
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "selfpatch", "watch", str(run)]
    with subprocess.Popen(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ shows", line)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=20):  # one that says nothing
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and "ended; the run is not touched" in out
