"What `make lab` starts keeps its token and stays on this machine: whoever has no token gets nothing."

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(os.name == "nt", reason="make"),
]


def recipe():
    "The command line of `make lab`, as make would run it, behind this environment's programs."
    if not shutil.which("make"):
        pytest.skip("needs make")
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if "jupyter lab" in line)
    return re.sub(r"^\S*jupyter lab", f"{sys.executable} -m jupyterlab", line).split()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "What the running server says of itself: port, token, and in `log` what it printed."
    home = tmp_path_factory.mktemp("home")
    places = {k: str(home / k) for k in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    log = home / "log"
    with open(log, "w") as out:
        server = subprocess.Popen(
            [*recipe(), "--no-browser", f"--port={free}"], cwd=ROOT, env={**os.environ, **places},
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not (found := list(home.glob("JUPYTER_RUNTIME_DIR/jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
        time.sleep(1)
        yield json.loads(found[0].read_text()) | dict(log=log)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def ask(lab, path, method="GET", body=None, **headers):
    c = http.client.HTTPConnection("127.0.0.1", lab["port"], timeout=20)
    c.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = c.getresponse()
    return answer.status, answer.read(), answer.getheader("Location")


UPGRADE = dict(
    Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="
)
READS = ["/api/contents", "/api/contents/00_tour.ipynb", "/api/kernels", "/api/sessions", "/api/terminals",
         "/api/kernelspecs", "/files/00_tour.ipynb", "/lab/api/settings"]  # fmt: skip
WRITES = [
    ("POST", "/api/kernels", "{}"), ("POST", "/api/terminals", "{}"), ("POST", "/api/sessions", "{}"),
    ("PUT", "/api/contents/evil.txt", '{"type": "file", "format": "text", "content": "x"}'),
    ("DELETE", "/api/contents/gone.txt", None), ("POST", "/api/shutdown", None),
]  # fmt: skip


def token(lab):
    return dict(Authorization=f"token {lab['token']}")


def test_it_has_a_token_and_listens_on_this_machine_alone(lab):
    assert re.fullmatch(r"[0-9a-f]{32,}", lab["token"]) and lab["hostname"] == "127.0.0.1"
    sockets = [line.split() for f in ("/proc/net/tcp", "/proc/net/tcp6") if os.path.exists(f) for line in open(f)]
    mine = [s[1] for s in sockets if s[3] == "0A" and s[1].endswith(f":{lab['port']:04X}")]
    assert mine in ([], [f"0100007F:{lab['port']:04X}"])  # empty where the system has no such file


def test_with_the_token_it_answers(lab):
    for path in READS[:5]:
        assert ask(lab, path, **token(lab))[0] == 200, path


@pytest.mark.parametrize(
    "auth", [{}, dict(Authorization="token 0000"), dict(Authorization="token "), dict(Cookie="a=b")]
)
@pytest.mark.parametrize("path", READS)
def test_nothing_is_read_without_the_token(lab, path, auth):
    status, body, where = ask(lab, path, **auth)
    assert status in (401, 403) or (status == 302 and "/login" in where)
    assert b"sft_nb" not in body and b"python3" not in body


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_nothing_is_written_or_started_without_the_token(lab, method, path, body):
    status, _, where = ask(lab, path, method, body)
    assert status in (401, 403) or (status == 302 and "/login" in where)
    assert not [*ROOT.rglob("evil.txt")]
    assert json.loads(ask(lab, "/api/kernels", **token(lab))[1]) == []


@pytest.fixture(scope="module")
def channels(lab):
    "A kernel that runs and a terminal, where there are terminals: their websockets."
    status, kernel, _ = ask(lab, "/api/kernels", "POST", "{}", **token(lab))
    assert status == 201
    paths = [f"/api/kernels/{json.loads(kernel)['id']}/channels", "/api/events/subscribe"]
    status, terminal, _ = ask(lab, "/api/terminals", "POST", "{}", **token(lab))
    if status in (200, 201):
        paths.append(f"/terminals/websocket/{json.loads(terminal)['name']}")
    yield paths
    ask(lab, paths[0].removesuffix("/channels"), "DELETE", **token(lab))


def open_channel(lab, path, **headers):
    "The status of the answer; 101 where the channel is open."
    with socket.create_connection(("127.0.0.1", lab["port"]), 20) as s:
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{lab['port']}"]
        lines += [f"{k.replace('_', '-')}: {v}" for k, v in {**UPGRADE, **headers}.items()]
        s.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(s.recv(100).split()[1])


def test_channels_need_the_token_and_a_page_of_ours(lab, channels):
    own = f"http://127.0.0.1:{lab['port']}"
    for path in channels:
        assert open_channel(lab, path, Origin=own, **token(lab)) == 101, path  # else the refusals show nothing
        assert open_channel(lab, path, Origin=own) in (401, 403), path
        assert open_channel(lab, path) in (401, 403), path
        assert open_channel(lab, path, Origin="http://evil.example", **cookie(lab)) == 403, path
        assert open_channel(lab, path, Origin=own, **cookie(lab)) == 101, path


def cookie(lab):
    "What a browser holds after it opened the address with the token."
    c = http.client.HTTPConnection("127.0.0.1", lab["port"], timeout=20)
    c.request("GET", f"/lab?token={lab['token']}")
    answer = c.getresponse()
    answer.read()
    return dict(Cookie="; ".join(v.split(";")[0] for k, v in answer.getheaders() if k.lower() == "set-cookie"))


def test_a_foreign_page_cannot_use_the_readers_cookie(lab):
    mine = cookie(lab)
    assert ask(lab, "/api/contents", **mine)[0] == 200  # the cookie is good
    running = lambda: [
        json.loads(ask(lab, f"/api/{what}", **token(lab))[1]) for what in ("kernels", "terminals", "sessions")
    ]
    before = [[x["name"] for x in of] for of in running()]
    for method, path, body in WRITES:  # Jupyter Server answers 404 where it does not like the Origin
        assert ask(lab, path, method, body, Origin="http://evil.example", **mine)[0] in (403, 404), path
    assert [[x["name"] for x in of] for of in running()] == before
    assert not [*ROOT.rglob("evil.txt")]
    c = http.client.HTTPConnection("127.0.0.1", lab["port"], timeout=20)
    c.request("GET", "/api/contents", headers={"Origin": "http://evil.example", **mine})
    assert c.getresponse().getheader("Access-Control-Allow-Origin") is None  # so that a browser hides the answer


def test_another_name_for_this_machine_is_refused(lab):
    "DNS rebinding: a page whose own name suddenly means 127.0.0.1."
    assert ask(lab, "/api/contents", Host="evil.example", **token(lab))[0] == 403


def test_neither_the_makefile_nor_the_configuration_opens_it(lab):
    text = (ROOT / "Makefile").read_text() + (ROOT / "lab_config.py").read_text()
    assert 'c.ServerApp.ip = "127.0.0.1"' in text and not re.search(
        r"token=|password|\.token|allow_origin|disable_check_xsrf|0\.0\.0\.0", text
    )
    assert parse_qs(urlsplit(lab["url"]).query) == {}


def test_the_printed_address_leads_to_the_tour(lab):
    assert f"http://127.0.0.1:{lab['port']}/lab/tree/00_tour.ipynb?token={lab['token']}" in lab["log"].read_text()


def test_the_books_notebooks_are_trusted_and_the_files_are_left_alone(lab):
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        cells = json.loads(ask(lab, f"/api/contents/{path.name}", **token(lab))[1])["content"]["cells"]
        assert all(c["metadata"]["trusted"] for c in cells if c["cell_type"] == "code"), path.name
        assert '"trusted"' not in path.read_text(encoding="utf-8")


def message(size):
    "A question to the kernel, of a number of its own, with so many bytes behind it, as an upload has (protocol v1)."
    header = dict(msg_id=str(size), msg_type="kernel_info_request", username="", session="1", version="5.3", date="")
    parts = [b"shell", json.dumps(header).encode(), b"{}", b"{}", b"{}", bytes(size)]
    ends = [8 * (len(parts) + 2)]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return b"".join(n.to_bytes(8, "little") for n in (len(ends), *ends)) + b"".join(parts)


@pytest.mark.parametrize("megabytes", [1, 20, 120])
def test_uploads_above_ten_megabytes_reach_the_kernel(lab, channels, megabytes):
    websocket = pytest.importorskip("websocket")
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{lab['port']}{channels[0]}", 60, header=token(lab), http_no_proxy=["127.0.0.1"],
        subprotocols=["v1.kernel.websocket.jupyter.org"],
    )  # fmt: skip
    try:
        ws.send(message(megabytes << 20), websocket.ABNF.OPCODE_BINARY)
        while b"kernel_info_reply" not in (got := ws.recv()):
            assert got, "the server closed the connection"
    finally:
        ws.close()
