"Downloads from a server on this machine that breaks off, lies, blocks, or knows nothing of parts."

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import ROOT

from sft_nb.fetch import fetch
from sft_nb.models import read_weights

BLOB = torch.Generator().manual_seed(0).get_state().numpy().tobytes() * 200  # 1 MB
SHA, MD5 = hashlib.sha256(BLOB).hexdigest(), hashlib.md5(BLOB).hexdigest()


class Far(BaseHTTPRequestHandler):
    "Serves BLOB under every name, as the server's attributes say."

    def do_GET(self):
        at = self.server
        at.seen.append((self.path, self.headers.get("Range")))
        start = int(m[1]) if at.parts and (m := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        if at.status != 200 or start >= len(at.blob):
            return self.send_error(at.status if at.status != 200 else 416)
        body = at.blob[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: at.breaks] if at.breaks else body
        for i in range(0, len(body), 100_000):
            at.sent += len(body[i : i + 100_000])  # before it goes out: whoever has it may ask at once
            self.wfile.write(body[i : i + 100_000])
            time.sleep(at.slow)

    def log_message(self, *args):
        pass


@pytest.fixture
def far(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY", "SFT_NB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Far)
    httpd.blob, httpd.parts, httpd.status, httpd.breaks, httpd.sent, httpd.seen = BLOB, True, 200, 0, 0, []
    httpd.slow = 0
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/files/a.bin"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("begins", "algorithm"), [(SHA, "sha256"), (SHA[:8], "sha256"), (MD5, "md5")])
def test_whole_and_checked(far, tmp_path, begins, algorithm):
    path = fetch(far.url, tmp_path / "deep" / "a.bin", begins, algorithm)
    assert path.read_bytes() == BLOB and names(path.parent) == ["a.bin"]


def test_what_broke_off_goes_on_and_nothing_is_sent_twice(far, tmp_path):
    far.breaks, tries = 300_000, 0
    while not (tmp_path / "a.bin").exists():
        tries += 1
        try:
            fetch(far.url, tmp_path / "a.bin", SHA)
        except OSError as e:
            assert "bytes are missing: call again" in str(e) and names(tmp_path) == [".a.bin.part"]
    assert tries == -(-len(BLOB) // far.breaks) and far.sent == len(BLOB)
    assert (tmp_path / "a.bin").read_bytes() == BLOB and names(tmp_path) == ["a.bin"]


def test_a_server_that_knows_no_parts_begins_anew(far, tmp_path):
    (tmp_path / ".a.bin.part").write_bytes(BLOB[:1000])
    far.parts = False
    assert fetch(far.url, tmp_path / "a.bin", SHA).read_bytes() == BLOB
    assert far.seen == [("/files/a.bin", "bytes=1000-")]


def test_killed_between_the_last_byte_and_the_name(far, tmp_path):
    (tmp_path / ".a.bin.part").write_bytes(BLOB)
    assert fetch(far.url, tmp_path / "a.bin", SHA).read_bytes() == BLOB and far.sent == 0


@pytest.mark.parametrize("have", [b"", BLOB[:1000], b"of yesterday's file", BLOB + b"and more"])
@pytest.mark.parametrize("blob", [b"<html>Please sign in</html>", BLOB[:-1] + b"x", b"x" + BLOB])
def test_another_file_is_thrown_away_and_can_be_fetched_again(far, tmp_path, have, blob):
    (tmp_path / ".a.bin.part").write_bytes(have)
    far.blob = blob
    with pytest.raises(OSError, match="not the published file: its SHA256 differs"):
        fetch(far.url, tmp_path / "a.bin", SHA)
    assert names(tmp_path) == []
    far.blob = BLOB
    assert fetch(far.url, tmp_path / "a.bin", SHA).read_bytes() == BLOB


@pytest.mark.parametrize("status", [403, 404, 407, 500, 503])
def test_a_blocked_one_leaves_what_was_there(far, tmp_path, status):
    (tmp_path / "a.bin").write_bytes(b"old")
    far.status = status
    with pytest.raises(OSError, match=str(status)):
        fetch(far.url, tmp_path / "a.bin", SHA)
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_mirror_serves_the_same_name(far, tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_NB_MIRROR", far.url.replace("/files/a.bin", "/copies/"))
    assert fetch("https://nowhere.invalid/deep/a.bin", tmp_path / "b.bin", SHA).read_bytes() == BLOB
    assert far.seen == [("/copies/a.bin", None)]


def test_a_mirror_cannot_slip_in_another_file(far, tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_NB_MIRROR", far.url.replace("/files/a.bin", ""))
    far.blob = b"something else"
    with pytest.raises(OSError, match="not the published file"):
        fetch("https://nowhere.invalid/a.bin", tmp_path / "a.bin", SHA)


@pytest.mark.parametrize("mirror", ["not an address", "ftp:", "http://"])
def test_a_mirror_that_is_no_address_is_an_error_with_the_way_out(tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("SFT_NB_MIRROR", mirror)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(OSError, match="could not be downloaded .* set SFT_NB_MIRROR"):
        read_weights("resnet18")


@pytest.mark.parametrize("typed", ["{home}/copies", "~/copies", "~/copies/", "{home}/x/../copies"])
def test_a_mirror_may_be_a_folder(tmp_path, monkeypatch, typed):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SFT_NB_MIRROR", typed.format(home=tmp_path))
    (tmp_path / "x").mkdir()
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "a.bin").write_bytes(BLOB)
    path = fetch("https://nowhere.invalid/deep/a.bin", "~/data/a.bin", SHA)
    assert path == tmp_path / "data" / "a.bin" and path.read_bytes() == BLOB and names(path.parent) == ["a.bin"]
    with pytest.raises(OSError, match="copies.b.bin"):  # it is not there
        fetch("https://nowhere.invalid/b.bin", tmp_path / "b.bin", SHA)
    (tmp_path / "copies" / "a.bin").write_bytes(BLOB[1:])
    with pytest.raises(OSError, match="not the published file"):
        fetch("https://nowhere.invalid/a.bin", tmp_path / "other.bin", SHA)


@pytest.mark.parametrize("mirror", ["server.lan/weights", r"Q:\mirror", "ftp:", "~nobody/mirror"])
def test_a_mirror_that_is_neither_is_one_sentence(tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("SFT_NB_MIRROR", mirror)
    with pytest.raises(OSError, match="SFT_NB_MIRROR is .*neither a folder here nor an address that begins with https"):
        fetch("https://nowhere.invalid/a.bin", tmp_path / "a.bin", SHA)


FETCHING = """
import sys
from pathlib import Path
from sft_nb.fetch import fetch
assert fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3]).stat().st_size == int(sys.argv[4])
"""


def fetching(far, path):
    "Another process that fetches."
    env = os.environ | dict(PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore")
    words = [sys.executable, "-c", FETCHING, far.url, str(path), SHA, str(len(BLOB))]
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)


def test_many_processes_fetch_one_file_once(far, tmp_path):
    far.slow = 0.1
    running = [fetching(far, tmp_path / "a.bin") for _ in range(4)]
    for p in running:
        assert p.wait(60) == 0, p.stderr.read()
    assert far.sent == len(BLOB) and len(far.seen) == 1
    assert names(tmp_path) == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == BLOB


def test_the_one_that_fetches_is_killed_and_one_that_waits_goes_on_from_there(far, tmp_path):
    far.slow = 0.2
    first = fetching(far, tmp_path / "a.bin")
    part = tmp_path / ".a.bin.part"
    while not (part.exists() and part.stat().st_size):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")
        waits = pool.submit(fetch, far.url, tmp_path / "a.bin", SHA)
        while not said:
            time.sleep(0.01)
        first.kill()
        first.wait()
        assert waits.result(60).read_bytes() == BLOB
    assert "another process is fetching a.bin: this one waits for it" in str(said[0].message)
    assert [r is None for _, r in far.seen] == [True, False] and int(far.seen[1][1][6:-1]) > 0


def test_the_one_that_fetches_fails_and_one_that_waits_goes_on_from_there(far, tmp_path):
    far.slow, far.breaks = 0.05, 600_000
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("ignore")
        both = [pool.submit(fetch, far.url, tmp_path / "a.bin", SHA) for _ in range(2)]
        said = [f.exception() for f in both]
    assert (tmp_path / "a.bin").read_bytes() == BLOB and far.sent == len(BLOB)
    assert sum(e is None for e in said) == 1 and sum("bytes are missing" in str(e) for e in said) == 1


def test_a_file_that_is_there_and_right_is_not_fetched_again_and_a_wrong_one_is_replaced(far, tmp_path):
    (tmp_path / "a.bin").write_bytes(BLOB)
    fetch(far.url, tmp_path / "a.bin", SHA)
    assert far.seen == []
    (tmp_path / "a.bin").write_bytes(BLOB[:-1])
    assert fetch(far.url, tmp_path / "a.bin", SHA).read_bytes() == BLOB and len(far.seen) == 1


def test_the_proxy_of_the_environment_is_used(far, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", far.url.replace("/files/a.bin", ""))
    assert fetch("http://nowhere.invalid/a.bin", tmp_path / "a.bin", SHA).read_bytes() == BLOB
    assert far.seen == [("http://nowhere.invalid/a.bin", None)]


def test_a_long_download_shows_how_far_it_is(far, tmp_path, capsys, monkeypatch):
    import sft_nb.fetch

    monkeypatch.setattr(sft_nb.fetch, "tqdm", lambda **kw: __import__("tqdm").tqdm(**{**kw, "delay": 0}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fetch(far.url, tmp_path / "a.bin", SHA)
    assert "a.bin" in (said := capsys.readouterr().err) and "100%" in said
