"Files that are whole or absent, and never believed without all of their bytes."

import json
import math
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sft_nb import store
from sft_nb.store import (
    Rows,
    StoreError,
    append_line,
    as_path,
    check_writable,
    digest,
    load,
    load_checkpoint,
    read_lines,
    save,
    save_checkpoint,
)

TENSORS = dict(
    x=torch.randn(7, 3), y=torch.arange(7), half=torch.randn(2, 2).bfloat16(), flag=torch.tensor(True), empty=torch.zeros(0, 4)
)  # fmt: skip
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_round_trip_and_the_library_reads_it_too(tmp_path):
    path = save(tmp_path / "deep" / "a.safetensors", TENSORS, dict(made="here"))
    tensors, meta = load(path)
    assert same(tensors, TENSORS) and meta == dict(made="here")
    assert same(load_file(path), TENSORS)


def test_rows_are_the_same_file_as_the_whole(tmp_path):
    x = torch.randn(10, 4)
    a = save(tmp_path / "a", dict(x=x))
    b = save(tmp_path / "b", dict(x=Rows((x[i : i + 3] for i in range(0, 10, 3)), (10, 4), x.dtype)))
    assert a.read_bytes() == b.read_bytes()


def test_pieces_that_do_not_add_up_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="do not add up"):
        save(tmp_path / "a", dict(x=Rows([torch.zeros(2, 4)], (10, 4), torch.float32)))
    assert list(tmp_path.iterdir()) == []


def test_every_single_bit_flip_and_every_truncation_is_named(tmp_path):
    blob = save(tmp_path / "a", TENSORS, dict(k="v")).read_bytes()
    bad = tmp_path / "bad"
    for i in range(len(blob)):
        bad.write_bytes(blob[:i] + bytes([blob[i] ^ (1 << i % 8)]) + blob[i + 1 :])
        with pytest.raises(StoreError, match="damaged"):
            load(bad)
        bad.write_bytes(blob[:i])
        with pytest.raises(StoreError, match="damaged"):
            load(bad)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_are_believed(tmp_path_factory, blob):
    path = tmp_path_factory.mktemp("store") / "a"
    path.write_bytes(blob)
    with pytest.raises(StoreError, match="damaged"):
        load(path)


def test_a_missing_file_is_missing_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def dying(new, k, path, save=save):
    "In a child: save over `path` and be killed at the k-th call of write, fsync or replace."
    pid = os.fork()
    if pid == 0:
        left = [k]

        def tick():
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def wrap(f):
            return lambda *a, **kw: (tick(), f(*a, **kw))[1]

        class File:
            def __init__(self, f):
                self.f, self.write = f, wrap(f.write)

            def __getattr__(self, name):
                return getattr(self.f, name)

            def __enter__(self):
                return self

            def __exit__(self, *a):
                self.f.close()

        store.open = lambda *a, **kw: File(open(*a, **kw))
        os.fsync, os.replace = wrap(os.fsync), wrap(os.replace)
        save(path, new)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@forks
@pytest.mark.parametrize("existing", [True, False])
def test_killed_at_any_write_the_old_file_or_the_new_one_stands(tmp_path, existing):
    new, old, path = dict(x=torch.ones(50, 3), y=torch.ones(4)), dict(x=torch.zeros(5, 3)), tmp_path / "a"
    killed = 0
    for k in range(30):
        path.unlink(missing_ok=True)
        if existing:
            save(path, old)
        if not dying(new, k, path):
            break
        killed += 1
        if path.exists():
            tensors, _ = load(path)
            assert same(tensors, old) or same(tensors, new)
            assert existing or same(tensors, new)
        else:
            assert not existing
    assert killed >= 5 and same(load(path)[0], new)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a", TENSORS)
    before = path.read_bytes()
    monkeypatch.setattr(
        store, "open", lambda p, mode: (open(p, mode).close(), open("/dev/full", "wb", buffering=0))[1], raising=False
    )
    with pytest.raises(StoreError, match="could not be written .No space left"):
        save(path, dict(x=torch.ones(1000)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        save(tmp_path / "file" / "a", TENSORS)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="could not be written"):
        save(tmp_path / "a", TENSORS)


def test_a_bit_flip_anywhere_near_the_hash_is_named(tmp_path):
    blob = save(tmp_path / "a", TENSORS).read_bytes()
    for bit in range(8 * 110):  # length, start and hash, all eight bits of each byte
        (tmp_path / f"bad{bit}").write_bytes(
            blob[: bit // 8] + bytes([blob[bit // 8] ^ 1 << bit % 8]) + blob[bit // 8 + 1 :]
        )
        with pytest.raises(StoreError, match="damaged"):
            load(tmp_path / f"bad{bit}")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(texts.filter(lambda k: k != "sha256"), texts, max_size=3), st.data())
def test_whatever_is_saved_comes_back(tmp_path_factory, meta, data):
    names = data.draw(st.lists(texts.filter(lambda k: k != "__metadata__"), unique=True, max_size=4))
    shapes = st.lists(st.integers(0, 4), max_size=3)
    tensors = {
        n: torch.randint(-3, 3, data.draw(shapes)).to(data.draw(st.sampled_from(sorted(store._NAMES, key=str))))
        for n in names
    }
    path = save(tmp_path_factory.mktemp("store") / "a", tensors, meta)
    assert same(load(path)[0], tensors) and load(path)[1] == meta and same(load_file(path), tensors)


def test_the_text_that_marks_the_hash_may_stand_elsewhere(tmp_path):
    meta = {'a"sha256': "v", "b": '{"__metadata__":{"sha256":"' + "0" * 64}
    tensors, got = load(save(tmp_path / "a", TENSORS, meta))
    assert same(tensors, TENSORS) and got == meta


@pytest.mark.parametrize(
    "tensors, meta, said",
    [
        (dict(x=torch.zeros(2)), dict(epoch=3), "'epoch': 3 cannot be kept: give text"),
        (dict(x=torch.zeros(2)), dict(sha256="mine"), "any name but sha256"),
        ({"__metadata__": torch.zeros(2)}, {}, "cannot name a tensor"),
        ({1: torch.zeros(2)}, {}, "cannot name a tensor"),
        (dict(z=torch.zeros(2, dtype=torch.complex64)), {}, "'z' is torch.complex64: convert it to one of float64"),
        ({"\ud800": torch.zeros(2)}, {}, "surrogates"),
        (dict(x=Rows([torch.zeros(5, 4).double()], (10, 4), torch.float32)), {}, "no part of torch.float32"),
        (dict(x=Rows([torch.zeros(4, 10)], (10, 4), torch.float32)), {}, "no part of torch.float32"),
        (dict(x=Rows([torch.zeros(11, 4)], (10, 4), torch.float32)), {}, "do not add up"),
    ],
)
def test_what_could_not_be_read_back_is_refused_and_leaves_the_old_file(tmp_path, tensors, meta, said):
    path = save(tmp_path / "a", TENSORS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        save(path, tensors, meta)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_piece_that_vanishes_or_is_damaged_keeps_its_own_error(tmp_path):
    "Else a cache that joins shards could not tell a cleared shard from a full disk."
    path = save(tmp_path / "a", TENSORS)
    shard = save(tmp_path / "shard", dict(x=torch.zeros(3)))
    rows = lambda: dict(x=Rows((load(p)[0]["x"] for p in (shard, shard)), (6,), torch.float32))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match="shard is damaged"):
        save(path, rows())
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="shard"):
        save(path, rows())
    assert same(load(path)[0], TENSORS) and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_header_nested_too_deep_to_parse_is_named(tmp_path):
    text = b"[" * 200_000
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(StoreError, match="damaged"):
        load(tmp_path / "a")


def test_a_file_of_the_library_itself_is_said_not_to_be_ours(tmp_path):
    save_file(dict(x=torch.zeros(3)), tmp_path / "a", metadata=dict(made="elsewhere"))
    with pytest.raises(StoreError, match="not a file of save"):
        load(tmp_path / "a")


def test_a_folder_is_not_called_damaged(tmp_path):
    for read in (load, read_lines):
        with pytest.raises(IsADirectoryError, match=f"{tmp_path.name} is a folder where a file"):
            read(tmp_path)


# Paths as people type them


@pytest.fixture
def home(tmp_path, monkeypatch):
    "Somebody's home folder, and another one where they work."
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(work)
    return home


def test_a_tilde_is_home_for_everything_that_writes_and_reads(home):
    assert save("~/a/x", TENSORS) == home / "a" / "x" and same(load("~/a/x")[0], TENSORS)
    append_line("~/log", dict(n=1))
    assert read_lines("~/log") == [dict(n=1)] == read_lines(home / "log")
    for n in (1, 2, 3):
        save_checkpoint("~/run", n, dict(n=n))
    assert load_checkpoint("~/run") == dict(n=3) and len(list((home / "run").iterdir())) == 2
    check_writable("~/results/x.jsonl")
    assert sorted(p.name for p in home.iterdir()) == ["a", "log", "results", "run"] and not list(Path().iterdir())


def test_a_tilde_elsewhere_is_a_letter_of_a_name(home):
    for name in ("a~b", "a/~/b", "~nobody-of-this-name/a", "./~"):
        save(name, TENSORS)
        assert same(load(name)[0], TENSORS)
    assert not list(home.iterdir()) and as_path("a~b") == Path("a~b")


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path, tmp_path / "file" / "x.jsonl", tmp_path / "file" / "deep" / "x.jsonl"):
        with pytest.raises(StoreError, match="could not be written .*: name a file in a folder that you may write to"):
            check_writable(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "in the way"


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    append_line(tmp_path / "log", dict(n=1))
    check_writable(tmp_path / "log")
    check_writable(tmp_path / "new")
    check_writable(tmp_path / "deep" / "new")
    assert read_lines(tmp_path / "log") == [dict(n=1)]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "log"]


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_log_that_may_grow_in_a_folder_that_may_not(tmp_path):
    append_line(tmp_path / "log", dict(n=1))
    tmp_path.chmod(0o500)
    check_writable(tmp_path / "log")
    with pytest.raises(StoreError, match="could not be written"):
        check_writable(tmp_path / "other")
    tmp_path.chmod(0o700)


# Lines

NO_ROWS = [b"NaN", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1e400}', b'{"a": [0, -1e999]}', b'{"a": ' + b"9" * 400 + b"}",
           b'{"a": ' + b"9" * 5000 + b"}", b"[" * 200_000, b'{"a":' * 200_000, b"[1]", b"3", b'"text"', b"null", b'{"a": 1', b"\xff\xfe", b"\x00"]  # fmt: skip


@pytest.mark.parametrize("line", NO_ROWS, ids=range(len(NO_ROWS)))
def test_one_bad_line_costs_one_line(tmp_path, line):
    path = tmp_path / "log"
    append_line(path, dict(n=1))
    path.write_bytes(path.read_bytes() + line + b"\n")
    append_line(path, dict(n=2))
    before = path.read_bytes()
    with pytest.warns(UserWarning, match="log, line 2 is no row: cut off by a kill"):
        assert read_lines(path) == [dict(n=1), dict(n=2)]
    assert path.read_bytes() == before


def test_lines_that_are_right_stay_right(tmp_path):
    rows = [dict(a=[1.5, 1e308, -5e-324, 0, 2**63, True, None, "NaN", {"ä": []}]), {}, dict(a="Infinity")]
    path = tmp_path / "log"
    path.write_bytes(b"\r\n".join(json.dumps(r).encode() for r in rows) + b"\r\n\n \n")  # an editor of Windows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_lines(path) == rows and read_lines(tmp_path / "none") == []


def test_a_file_of_another_kind_is_one_warning(tmp_path):
    (tmp_path / "README.md").write_text("words\n" * 100)
    with pytest.warns(UserWarning) as said:
        assert read_lines(tmp_path / "README.md") == []
    assert len(said) == 1
    assert "README.md, lines 1, 2, 3, 4, 5 and 95 more are no rows: is it another kind of file" in str(said[0].message)


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(1.0), Path("a"), {1, 2}, "\ud800"])
def test_what_json_cannot_hold_is_refused_in_a_sentence_and_leaves_the_file(tmp_path, value):
    append_line(tmp_path / "log", dict(n=1))
    with pytest.raises(ValueError, match="a row cannot be written as JSON .*: give finite numbers, text"):
        append_line(tmp_path / "log", dict(n=value))
    assert read_lines(tmp_path / "log") == [dict(n=1)]


# Checkpoints from outside


def forged(folder, tree, **tensors):
    return save(folder / "000000001.safetensors", tensors, dict(kind="checkpoint", tree=json.dumps(tree)))


def test_a_tensor_that_is_mentioned_many_times_takes_no_memory(tmp_path):
    "16 MB on the disk must not become 32 GB."
    mention = {"tensor": "x"}
    forged(tmp_path, {"dict": [[k, mention] for k in range(2000)]}, x=torch.zeros(1 << 22))
    with warnings.catch_warnings(), pytest.raises(StoreError, match="none of them is whole"):
        warnings.simplefilter("ignore")
        load_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="holds no checkpoint .'x' is not in it, or stands in two places"):
        with pytest.raises(StoreError):
            load_checkpoint(tmp_path)


def test_one_tensor_in_two_places_of_a_state_comes_back_in_both(tmp_path):
    x = torch.randn(3)
    save_checkpoint(tmp_path, 1, dict(a=x, b=[x, (x,)]))
    state = load_checkpoint(tmp_path)
    assert torch.equal(state["a"], x) and torch.equal(state["b"][0], x) and torch.equal(state["b"][1][0], x)


def test_a_folder_named_like_a_checkpoint_is_none(tmp_path):
    save_checkpoint(tmp_path, 1, dict(n=1))
    (tmp_path / "000000009.safetensors").mkdir()
    assert load_checkpoint(tmp_path) == dict(n=1)
    for n in (2, 3):
        save_checkpoint(tmp_path, n, dict(n=n))
    assert load_checkpoint(tmp_path) == dict(n=3)
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == [2, 3, 9]
    with pytest.raises(StoreError, match="could not be written"):
        save_checkpoint(tmp_path, 9, dict(n=9))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a mapped file")
def test_a_tensor_in_hand_does_not_change_when_its_file_is_replaced(tmp_path):
    path = save(tmp_path / "a", dict(x=torch.zeros(5000)))
    x = load(path)[0]["x"]
    save(path, dict(x=torch.ones(5000)))
    assert not x.any() and load(path)[0]["x"].all()


def test_digest_sees_every_change():
    t = dict(a=torch.zeros(4), b=torch.ones(2))
    others = [
        dict(a=torch.zeros(4), b=torch.ones(2).half()), dict(a=torch.zeros(2, 2), b=torch.ones(2)),
        dict(a=torch.zeros(4), c=torch.ones(2)), dict(a=torch.tensor([0, 0, 0, -0.0]), b=torch.ones(2)),
    ]  # fmt: skip
    assert len({digest(t), *map(digest, others)}) == 5
    assert digest(dict(b=t["b"], a=t["a"])) == digest(t)
