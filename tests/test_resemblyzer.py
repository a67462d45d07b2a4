"A network that has heard voices: the maker's own function, the picture that it wants, and what it is good at."

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

from sft_nb import zoo
from sft_nb.blocks import blocks
from sft_nb.cli import main
from sft_nb.data import Loader, few_shot
from sft_nb.deltas import load_delta, save_delta
from sft_nb.evaluation import accuracy
from sft_nb.features import Features, extract
from sft_nb.models import adapt, load_pretrained, snapshot
from sft_nb.probing import choose, l2_path
from sft_nb.sounds import RATE, WAYS, Sounds, split_recordings
from sft_nb.sources import resemblyzer
from sft_nb.sources.resemblyzer import BANDS, HOP, WINDOW, VoiceMel, Voices, twice_the_rate, voice_bank
from sft_nb.sources.spoken import spoken_digits
from sft_nb.strategies import run_phases, strategy


def hum(f, loud, n):
    "A wavering tone with seven overtones, int16 at 8,000 a second."
    t = np.arange(n) / RATE
    x = sum(np.sin(2 * np.pi * f * k * t * (1 + 0.02 * np.sin(6 * np.pi * t))) / k for k in range(1, 9)) * loud
    return torch.from_numpy(np.round(x * 2**15).astype(np.int16))


def two():
    "A short quiet one, and a longer loud one beside it."
    rows = torch.zeros(2, 7120, dtype=torch.int16)
    rows[0, :5000], rows[1] = hum(110, 0.01, 5000), hum(220, 0.2, 7120)
    return rows


# Resemblyzer 0.1.4's own program with librosa 0.10.2 on `two()`, resampled by SciPy, without the silence that it adds:
# frames, sum of the picture, five bands of frame 20, entries above 0, the six largest and which they are
FACTS = (
    (63, 25.306307, [0.16123, 0.12138, 0.04737, 0.02438, 0.01423], 142, [48, 248, 15, 25, 89, 101],
     [0.1998, 0.1872, 0.1843, 0.1715, 0.1696, 0.1622]),
    (90, 1091.929443, [0.00043, 2.32369, 5.36563, 0.49501, 0.88848], 135, [209, 18, 16, 162, 247, 158],
     [0.2237, 0.2191, 0.1950, 0.1926, 0.1897, 0.1860]),
)  # fmt: skip


@pytest.fixture(scope="module")
def pre():
    "Skip where the weights are not here: no test asks an index for them."
    if not resemblyzer.is_here():
        pytest.skip("the weights are not here: sft_nb fetch resemblyzer")
    return load_pretrained("resemblyzer")


def test_the_picture_is_that_of_the_makers_program():
    x = VoiceMel()(two())
    for picture, (frames, total, bands, *_) in zip(x, FACTS, strict=True):
        assert int(picture[0].sum()) == frames and abs(float(picture[1:].sum()) / total - 1) < 1e-5
        np.testing.assert_allclose(picture[1:6, 20], bands, atol=2e-5)
        assert not picture[:, frames:].any()


def test_the_vector_is_that_of_the_makers_program(pre):
    with torch.no_grad():
        z = pre.backbone(pre.transform(two()))
    for v, (*_, positive, which, top) in zip(z, FACTS, strict=True):
        assert int((v > 0).sum()) == positive and v.argsort(descending=True)[:6].tolist() == which
        np.testing.assert_allclose(v[which], top, atol=1e-4)
        assert abs(float(v.norm()) - 1) < 1e-5


def test_bands_and_powers_are_those_of_transformers():
    audio = pytest.importorskip("transformers.audio_utils")
    theirs = audio.mel_filter_bank(WINDOW // 2 + 1, BANDS, 0.0, RATE, 2 * RATE, norm="slaney", mel_scale="slaney")
    assert np.abs(theirs.T - voice_bank().numpy()).max() < 1e-6
    row = two()[1:]
    x = resample_poly(row[0].numpy() / 2**15, 2, 1)
    hann = audio.window_function(WINDOW, "hann")
    p = audio.spectrogram(x, hann, WINDOW, HOP, center=True, pad_mode="constant", power=2.0, mel_filters=theirs)
    np.testing.assert_allclose(VoiceMel()(row)[0, 1:], p, rtol=2e-3, atol=1e-4)


def test_the_rate_is_doubled_as_scipy_doubles_it():
    y, n = twice_the_rate(two())
    for row, out, k, want in zip(two(), y, n.tolist(), (10_000, 14_240), strict=True):
        assert k == want and not out[k:].any()
        np.testing.assert_allclose(out[:k], resample_poly(row[: k // 2].numpy() / 2**15, 2, 1), atol=1e-6)


def test_a_sound_is_the_same_beside_a_longer_one_and_the_level_is_brought_up_only():
    torch.manual_seed(0)
    net, see, rows = Voices().eval(), VoiceMel(), two()
    with torch.no_grad():
        together, alone = net(see(rows)), net(see(rows[:1, :5000]))
        padded = net(see(torch.nn.functional.pad(rows, (0, 4000))))
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together, padded, atol=1e-6, rtol=0)
    far = lambda k, s: float((see((rows.float() * s).round().short()) - see(rows))[k].norm() / see(rows)[k].norm())
    assert far(0, 0.5) < 0.02 and 0.7 < far(1, 0.5) < 0.8  # power goes with the square; the loud one is left as it is


@pytest.mark.parametrize("row", [torch.zeros(500), torch.eye(500)[0] * 30_000, torch.ones(500) * 32_767, torch.ones(1)])
def test_silence_and_single_samples_give_numbers(row):
    z = Voices().eval()(VoiceMel()(row.short()[None]))
    assert z.shape == (1, 256) and z.isfinite().all()


def test_it_is_said_what_it_is_and_where_it_may_be_had(pre, tmp_path, monkeypatch, capsys):
    for said in ("resemblyzer: 1,423,616 parameters", "reads sounds", "people, told apart", "Apache-2.0", "39373b86"):
        assert said in str(pre)
    assert hashlib.sha256(resemblyzer.bring().read_bytes()).hexdigest() == resemblyzer.WHEEL.inside == pre.digest
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("SFT_NB_MIRROR", str(tmp_path))
    with pytest.raises(OSError, match="pip download --no-deps Resemblyzer==0.1.4.*pretrained.pt") as e:
        load_pretrained("resemblyzer")
    assert "\n" not in str(e.value) and not resemblyzer.is_here()
    assert "drawn at random" in str(zoo.network("resemblyzer", weights=False))
    assert main(["fetch", "resemblyzer"]) == 2 and "Resemblyzer==0.1.4" in capsys.readouterr().err
    (tmp_path / "pretrained.pt").write_bytes(b"another file")
    with pytest.raises(OSError, match="is not the published file"):
        resemblyzer.bring()
    assert not any(p.is_file() and p.name != "pretrained.pt" for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="did you mean 'resemblyzer'"):
        resemblyzer.bring("resembler")


def few():
    return Sounds([0.3 * torch.sin(torch.arange(900.0) * f) for f in (0.2, 0.9, 0.3, 1.0)], [0, 1, 0, 1])


@pytest.mark.parametrize("name", ["linear_probing", "last_block", "bitfit", "lora", "full", "from_scratch"])
def test_strategies_move_what_they_name_and_a_delta_gives_it_back(name, pre, tmp_path):
    torch.manual_seed(0)
    model = adapt(pre, 2)
    before = snapshot(model)
    phases = tuple(replace(p, epochs=min(p.epochs, 1)) for p in strategy(name, model))
    for _ in run_phases(model, Loader(few(), 2, pre.transform), phases):
        pass
    after = snapshot(model)
    body = {n for n in before if n.startswith("backbone") and not torch.equal(before[n], after.get(n, before[n]))}
    assert all(t.isfinite().all() for t in after.values())
    layers = {n.split(".")[1] for n in body}
    want = dict(linear_probing=set(), last_block={"linear"}, lora=set())
    assert layers == want.get(name, {"layer1", "layer2", "layer3", "linear"})
    if name == "lora":  # the matrices of an LSTM are no layers that LoRA knows
        assert {n for n in after if "lora_A" in n} == {"backbone.linear.lora_A"}
    if name == "last_block":
        save_delta(tmp_path / "d.safetensors", model, pre)
        again = adapt(pre, 2)
        load_delta(tmp_path / "d.safetensors", pre, again)
        x = pre.transform(few().x)
        with torch.no_grad():
            assert torch.equal(again.eval()(x), model.eval()(x))


def test_what_it_has_none_of_is_said(pre):
    assert [*blocks(adapt(pre, 2))] == ["layer1", "layer2", "layer3", "linear", "head"]
    with pytest.raises(ValueError, match="has no BatchNorm"):
        strategy("bn_only", adapt(pre, 2))


def test_it_knows_who_speaks_and_hardly_what_is_said(pre):
    try:
        r = spoken_digits()
    except FileNotFoundError as e:
        pytest.skip(str(e))
    z = extract(pre.backbone, Loader(Sounds(r.x, r.word), 100, pre.transform), engine="eager").x

    def probed(way):
        "Mean accuracy of three draws of ten labels."
        s = split_recordings(replace(r, x=torch.arange(len(r.x))[:, None].short()), way)
        of = lambda ds: Features(z[ds.x[:, 0].long()], ds.y)
        l2s = (1e-2, 1e-3, 1e-4)
        heads = [choose(l2_path(of(few_shot(s.train, 10, k)), len(s.classes), l2s), of(s.valid)) for k in range(3)]
        return np.mean([accuracy(h.logits(of(s.test).x), s.test.y) for h in heads])

    assert 0.96 < probed("who") < 0.998
    unseen = np.mean([probed(w) for w in WAYS[2:]])
    assert 0.33 < unseen < 0.52
