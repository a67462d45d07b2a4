"Downloads from a server on this machine that breaks off, lies, blocks, or knows nothing of parts."

import hashlib
import re
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from sft_nb.models import read_weights
from sft_nb.store import fetch

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
        at.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def far(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY", "SFT_NB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Far)
    httpd.blob, httpd.parts, httpd.status, httpd.breaks, httpd.sent, httpd.seen = BLOB, True, 200, 0, 0, []
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


def test_the_proxy_of_the_environment_is_used(far, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", far.url.replace("/files/a.bin", ""))
    assert fetch("http://nowhere.invalid/a.bin", tmp_path / "a.bin", SHA).read_bytes() == BLOB
    assert far.seen == [("http://nowhere.invalid/a.bin", None)]


def test_a_long_download_shows_how_far_it_is(far, tmp_path, capsys, monkeypatch):
    import sft_nb.store

    monkeypatch.setattr(sft_nb.store, "tqdm", lambda **kw: __import__("tqdm").tqdm(**{**kw, "delay": 0}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fetch(far.url, tmp_path / "a.bin", SHA)
    assert "a.bin" in (said := capsys.readouterr().err) and "100%" in said
