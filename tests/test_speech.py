"Sounds: files as people make them, laws of the transform and the network, and accuracies in both directions."

import hashlib
import io
import itertools
import math
import re
import wave
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly, stft

from sft_nb import zoo
from sft_nb.cli import main
from sft_nb.data import Loader, few_shot, load_split
from sft_nb.evaluation import accuracy
from sft_nb.features import Features, extract
from sft_nb.fetch import git_blob
from sft_nb.models import adapt, load_pretrained
from sft_nb.probing import solve_head
from sft_nb.sequences import Speller, collapse, ctc, edits, spell, strings, token_error
from sft_nb.sounds import (
    HOP,
    RATE,
    WAYS,
    WINDOW,
    LogMel,
    Sounds,
    cut_to_speech,
    lengths,
    mel_bank,
    read_sounds,
    read_wave,
    read_word,
    resampled,
    spectrogram,
    split_recordings,
    to_rows,
    to_waves,
)  # fmt: skip
from sft_nb.sources import speech, spoken
from sft_nb.strategies import STRATEGIES, run_phases, scaled, strategy
from sft_nb.synthesis import ADAPT, Talker, cepstra, griffin_lim, mcd, pictures, say_all, teach

pytestmark = pytest.mark.xdist_group("sounds")  # what they share is loaded once, by one worker

MADE = speech.made_digits()
RNG = np.random.default_rng(0)


def tone(f, seconds=0.4, rate=RATE, loud=0.5):
    return loud * np.sin(2 * np.pi * f * np.arange(round(seconds * rate)) / rate)


def loudest(x, rate=RATE):
    "The strongest frequency, Hz."
    return np.abs(np.fft.rfft(x * np.hanning(len(x)))).argmax() * rate / len(x)


def one_sentence(e, name):
    said = str(e.value)
    assert name in said and "\n" not in said and len(said) < 400 and "Traceback" not in said
    return said


# files


def pcm(path, x, rate, width, channels):
    "By the standard library, which knows nothing of SciPy's reader."
    full = 2 ** (8 * width - 1) - 1
    v = np.repeat((x * full).astype(np.int64), channels)
    raw = (
        (v + 128).astype("u1").tobytes()
        if width == 1
        else v.astype("<i8").view("u1").reshape(-1, 8)[:, :width].tobytes()
    )
    with wave.open(str(path), "wb") as w:
        w.setnchannels(channels)
        w.setsampwidth(width)
        w.setframerate(rate)
        w.writeframes(raw)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000, 11_025])
@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 6)])
def test_a_tone_is_the_same_tone_in_any_file(tmp_path, rate, width, channels):
    pcm(tmp_path / "a.wav", tone(1000, rate=rate), rate, width, channels)
    x, said = read_wave(tmp_path / "a.wav")
    assert said == rate and x.dtype == np.float32 and abs(np.abs(x).max() - 0.5) < 0.01
    y = resampled(x, rate)
    assert abs(len(y) - 0.4 * RATE) <= 1 and abs(loudest(y) - 1000) < 3
    assert abs(np.sqrt((y[400:-400] ** 2).mean()) - 0.5 / 2**0.5) < 0.02


def test_what_the_new_rate_cannot_hold_is_gone():
    for f, left in ((3000, 1.0), (3500, 1.0), (5000, 0.01), (7000, 0.01)):
        y = resampled(tone(f, 1, 16_000), 16_000)[500:-500]
        assert (np.abs(y).max() / 0.5 > 0.9) if left == 1 else (np.abs(y).max() / 0.5 < left)


def test_floats_and_flac(tmp_path):
    wavfile.write(tmp_path / "f.wav", 44_100, tone(500, rate=44_100).astype(np.float32))
    wavfile.write(tmp_path / "d.wav", 44_100, np.stack([tone(500, rate=44_100)] * 2, 1))
    assert np.allclose(read_wave(tmp_path / "f.wav")[0], read_wave(tmp_path / "d.wav")[0], atol=1e-6)
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(ValueError, match="a.flac") as e:
        read_wave(tmp_path / "a.flac")
    one_sentence(e, "a.flac")
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "b.flac", tone(500, rate=44_100), 44_100)
    assert abs(loudest(resampled(*read_wave(tmp_path / "b.flac"))) - 500) < 3


def wav(x, rate=RATE):
    out = io.BytesIO()
    wavfile.write(out, rate, np.asarray(x))
    return out.getvalue()


GOOD = wav((tone(440) * 2**15).astype(np.int16))
BAD = {
    "empty": b"", "header": GOOD[:44], "half_header": GOOD[:20], "text": b"I am a text, and no sound. " * 40,
    "mp3": b"ID3\x04\x00\x00" + bytes(500), "no_rate": GOOD[:24] + bytes(4) + GOOD[28:], "nothing": wav(np.zeros(0, np.int16)),
    "nan": wav(np.full(RATE, np.nan, np.float32)), "inf": wav(np.full(RATE, np.inf, np.float32)),
    "silence": wav(np.zeros(RATE, np.int16)), "click": wav((np.eye(1, RATE, 4000)[0] * 2**14).astype(np.int16)),
    "short": wav(np.ones(80, np.int16)), "noise": wav((RNG.standard_normal(RATE) * 2000).astype(np.int16)),
    "constant": wav(np.full(RATE, 5000, np.int16)), "ten_minutes": wav((RNG.standard_normal(600 * RATE) * 2000).astype(np.int16)),
    "ogg": b"OggS" + bytes(200), "webm": b"\x1aE\xdf\xa3" + bytes(200),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_word_is_one_sentence(tmp_path, name):
    (tmp_path / f"{name}.wav").write_bytes(BAD[name])
    with pytest.raises(ValueError) as e:
        read_word(tmp_path / f"{name}.wav")
    one_sentence(e, f"{name}.wav")


def test_a_song_is_refused_and_a_word_in_ten_minutes_is_found(tmp_path):
    quiet = RNG.standard_normal(600 * RATE) * 1e-3
    quiet[300 * RATE : 300 * RATE + 3200] += tone(440)
    wavfile.write(tmp_path / "long.wav", RATE, quiet.astype(np.float32))
    x = read_word(tmp_path / "long.wav")
    assert 0.4 < len(x) / RATE < 0.55 and abs(loudest(x) - 440) < 5
    many = np.tile(np.concatenate([tone(440, 0.3), np.zeros(1600)]), 10) + RNG.standard_normal(40_000) * 1e-3
    wavfile.write(tmp_path / "song.wav", RATE, many.astype(np.float32))
    with pytest.raises(ValueError, match=r"song.wav holds \d\.\d seconds of sound, and a word has 2 at most: cut it"):
        read_word(tmp_path / "song.wav")


def test_a_file_that_broke_off_is_read_as_far_as_it_goes_or_refused(tmp_path):
    for n in (60, 100, 2001, 3000, 5000):
        (tmp_path / "part.wav").write_bytes(GOOD[:n])
        try:
            x, rate = read_wave(tmp_path / "part.wav")
            assert rate == RATE and np.isfinite(x).all() and len(x) <= 3200
        except ValueError as e:
            assert "part.wav" in str(e)


def test_a_hundred_disguised_words_are_found_again(tmp_path):
    "Made words in files of all kinds, with silence, hum, another loudness and noise around them."
    g, lengths_, right = np.random.default_rng(1), [], 0
    rows = MADE.x[(MADE.take < 2) & (MADE.word < 5)]
    clean = speech.speak([*speech.DIGITS.values()] * 3, [speech.draw_voice(g) for _ in range(30)], g, (40, 45))
    for k, w in enumerate(clean):
        rate = (44_100, 48_000, 16_000, 22_050)[k % 4]
        x = np.concatenate([np.zeros(g.integers(1600, 6400)), w, np.zeros(g.integers(1600, 6400))])
        x = resample_poly(x, rate, RATE) * g.uniform(0.2, 1)
        x = (
            x
            + 0.003 * np.abs(x).max() * g.standard_normal(len(x))
            + 0.02 * np.sin(2 * np.pi * 50 * np.arange(len(x)) / rate)
        )
        pcm(tmp_path / "w.wav", x.clip(-1, 1), rate, (2, 3, 4)[k % 3], 1 + k % 2)
        found = read_word(tmp_path / "w.wav")
        lengths_.append(len(found) / len(w))
        right += found.max() <= 0.5 and found.min() >= -0.5
    assert right == len(clean) and 0.6 < np.mean(lengths_) < 1.1 and len(rows) == 60


def test_a_folder_is_a_task_and_its_faults_are_told_together(tmp_path):
    for word, f in (("ja", 300), ("nein", 900), ("Überübermorgen", 2000)):
        (tmp_path / word).mkdir()
        for k in range(5):
            noisy = np.concatenate([np.zeros(4000), tone(f + k), np.zeros(3000)]) + RNG.standard_normal(10_200) * 1e-3
            wavfile.write(tmp_path / word / f"t{k}.WAV", RATE, noisy.astype(np.float32))
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    split = load_split(tmp_path)
    assert split.classes == ("ja", "nein", "Überübermorgen") and len(split.train) == 9
    assert zoo.reader(tmp_path) is spoken and len(zoo.digest(tmp_path)) == 64
    for k in range(4):
        (tmp_path / "ja" / f"bad{k}.wav").write_bytes(BAD["text"])
    with pytest.raises(ValueError, match=r"4 of 19 recordings cannot be used \(ja/bad0.wav .*; \.\.\.\): record") as e:
        read_sounds(tmp_path)
    assert "\n" not in str(e.value)
    for path, why in ((tmp_path / "ja", "is to hold a folder for each"), (tmp_path / "none", "is to hold a folder")):
        with pytest.raises(ValueError, match=why):
            read_sounds(path)


def test_copies_are_kept_together(tmp_path):
    for word, f in (("a", 300), ("b", 900)):
        (tmp_path / word).mkdir()
        for k in range(12):
            wavfile.write(
                tmp_path / word / f"{k}.wav", RATE, np.concatenate([np.zeros(3000), tone(f + k // 3), np.zeros(3000)])
            )
    split = read_sounds(tmp_path)
    parts = [{r.numpy().tobytes() for r in p.x} for p in (split.train, split.valid, split.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


# rows, and what is seen of them


def test_rows_and_waves_are_each_other():
    waves = [torch.rand(n) - 0.5 for n in (1, 79, 80, 81, 5000)]
    rows = to_rows(waves)
    for w, back in zip(waves, to_waves(rows), strict=True):
        assert len(w) == len(back) and (w - back).abs().max() <= 2**-15
    assert lengths(torch.zeros(2, 5, dtype=torch.int16)).tolist() == [1, 1]
    for bad in ([torch.zeros(3)[None]], [torch.tensor([float("nan")])], [torch.zeros(0)], [torch.zeros(3).long()]):
        with pytest.raises(ValueError, match="sound 0 must be floats"):
            to_rows(bad)
    with pytest.raises(ValueError, match="samples as int16"):
        Sounds(torch.zeros(2, 5), [0, 1])


def test_the_spectrogram_is_scipys():
    x = torch.randn(2, 1000)
    ours = spectrogram(x)
    padded = np.pad(x.numpy(), ((0, 0), (WINDOW // 2, WINDOW)))
    _, _, theirs = stft(padded, nperseg=WINDOW, noverlap=WINDOW - HOP, boundary=None, padded=False, window="hann")
    theirs = theirs[..., : ours.shape[-1]] * WINDOW / 2  # SciPy divides by the window's sum
    assert ours.shape == (2, WINDOW // 2 + 1, 13) and np.abs(ours.numpy() - theirs).max() < 1e-3


def test_bands_and_log_power_are_those_of_transformers():
    audio = pytest.importorskip("transformers.audio_utils")
    theirs = audio.mel_filter_bank(WINDOW // 2 + 1, 40, 60.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    assert np.abs(mel_bank().numpy().T - theirs).max() < 1e-5
    x = to_waves(MADE.x[7])[0]
    window = audio.window_function(WINDOW, "hann")
    p = audio.spectrogram(
        x.numpy(), window, WINDOW, HOP, center=True, pad_mode="constant", power=2.0, mel_filters=theirs
    )
    ours, there = LogMel(floor=200.0, level=False).powers(to_rows([x]))
    n = int(there.sum())
    assert np.abs(np.log(np.maximum(p, 1e-12))[:, :n] - ours[0].numpy()[:, :n]).max() < 1e-3


def test_a_sound_is_the_same_beside_a_longer_one_and_from_further_away():
    pre, rows = load_pretrained("hearing"), MADE.x[::100]
    with torch.no_grad():
        together = pre.backbone(pre.transform(rows))
        alone = torch.cat([pre.backbone(pre.transform(r[None, : int(lengths(r[None]))])) for r in rows])
        padded = pre.backbone(pre.transform(torch.nn.functional.pad(rows, (0, 3000))))
        quiet = pre.backbone(pre.transform((rows.float() / 4).round().short()))
    off = lambda z: float((z - together).norm() / together.norm())
    assert off(alone) < 1e-4 and off(padded) < 1e-4 and off(quiet) < 0.1
    m = LogMel()(rows)
    for p in m:
        sound = p[1:, p[0] == 1]
        assert (
            abs(float(sound.mean())) < 1e-3
            and abs(float(sound.std(unbiased=False)) - 1) < 1e-3
            and not p[1:, p[0] == 0].any()
        )


def test_silence_and_single_samples_give_numbers():
    rows = torch.zeros(3, 500, dtype=torch.int16)
    rows[1, 0], rows[2] = 1, 32_767
    pre = load_pretrained("hearing")
    with torch.no_grad():
        assert pre.backbone(pre.transform(rows)).isfinite().all()


def test_ways_share_what_they_say():
    key = lambda ds: {tuple(r) for r in ds.x.tolist()}
    n = len(MADE.x)
    r = replace(MADE, x=torch.stack([MADE.who, MADE.take, MADE.word, torch.arange(n) // 1], 1).short())
    for way in WAYS:
        s = split_recordings(r, way)
        a, b, c = key(s.train), key(s.valid), key(s.test)
        assert not (a & b or a & c or b & c) and len(a | b | c) == n
        column = 0 if way.startswith("by") else 1
        assert not {k[column] for k in a | b} & {k[column] for k in c}
    tests = [{k[0] for k in key(split_recordings(r, w).test)} for w in WAYS[2:]]
    assert sorted(k for t in tests for k in t) == [*range(6)]


# the made world


def test_a_voice_has_the_pitch_that_it_was_given():
    for pitch in (90.0, 140.0, 230.0):
        v = speech.Voice(1.0, pitch, -6.0, 4.0, np.ones((28, 3)), np.zeros(3))
        x = speech.speak(["aa"], [v], np.random.default_rng(3), (60, 60))[0][1200:3200]
        r = np.correlate(x, x, "full")[len(x) - 1 :]
        lag = np.arange(RATE // 400, RATE // 70)
        assert abs(RATE / lag[r[lag].argmax()] / pitch - 1) < 0.12


def test_noise_is_as_loud_as_it_was_asked_for():
    v = speech.Voice(1.0, 120.0, -6.0, 1.0, np.ones((28, 3)), np.zeros(3))
    for db in (0, 20, 40):
        x = speech.speak(["s iy"], [v], np.random.default_rng(3), (db, db), margin=100)[0]
        before, whole = (x[:7000] ** 2).mean(), (x**2).mean()
        assert abs(10 * np.log10(max(whole - before, 1e-12) / before) - db) < 1.5


def test_made_tasks_are_the_same_each_time_and_others_by_name():
    again = speech.made_digits.__wrapped__()
    assert (
        torch.equal(again.x, MADE.x)
        and len(speech.tasks()) == 5
        and {zoo.tasks()[n] for n in speech.tasks()} == {"speech"}
    )
    assert all(zoo.networks("audio")[n] == "speech" for n in zoo.networks("audio") if n in speech.networks())
    with pytest.raises(ValueError, match="did you mean 'made_digits_who'"):
        load_split("made_digits_hwo")
    with pytest.raises(ValueError, match="take a network and a task of one kind"):
        load_pretrained("pocket").check(load_split("made_digits").test)


@pytest.mark.parametrize("name", speech.networks())
def test_weights_are_refused_when_a_byte_differs(tmp_path, monkeypatch, name):
    blob = bytearray((speech._WEIGHTS / f"{name}.safetensors").read_bytes())
    right = hashlib.sha256(blob).hexdigest()
    assert right == speech.DIGESTS[name] == load_pretrained(name).digest and len(blob) < 420_000
    blob[5000] ^= 1
    (tmp_path / f"{name}.safetensors").write_bytes(blob)
    monkeypatch.setattr(speech, "_WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="is not the file that was shipped"):
        load_pretrained(name)


def test_phones_are_labelled_where_they_are_said():
    "The same sounds, and a label every 20 ms: silence before and behind, the word's phones between, -100 behind the end."
    words, phones = (speech.speech_source(128, 3, phones=told) for told in (False, True))
    assert torch.equal(words.x, phones.x) and phones.y.shape == (128, 50)
    seconds = (phones.y >= 0).sum(1) / 50
    assert torch.allclose(seconds, lengths(words.x) / RATE, atol=0.021)
    silence = len(speech.PHONES)
    for row in phones.y.tolist():
        row = [k for k in row if k >= 0]
        assert row[0] == silence and len({*row}) > 1
    loud = words.x.float().view(128, 50, -1).square().mean(2)  # silence is quieter than what is said
    assert loud[phones.y == silence].median() < 0.1 * loud[(phones.y >= 0) & (phones.y < silence)].median()


def test_the_network_of_phones_hears_words_and_knows_no_class():
    "In bands that were measured: made words, other takes, ten labels."
    pre, split = load_pretrained("hearing-phones"), load_split("made_digits")
    assert pre.head is None and pre.num_features == 288
    few = few_shot(split.train, 10, 0)
    phi = lambda ds: extract(pre.backbone, Loader(ds, 100, pre.transform))
    head, test = solve_head(phi(few), 10, 0.01), phi(split.test)
    assert 0.85 < accuracy(head.logits(test.x), test.y) < 0.99


@pytest.mark.parametrize(
    "name", ["linear_probing", "bitfit", "lora", "lp_ft", "from_scratch", "frozen_bn", "last_block"]
)
def test_strategies_learn_on_sounds(name):
    assert name in STRATEGIES or name == "frozen_bn"
    torch.manual_seed(0)
    pre, split = load_pretrained("hearing"), load_split("made_digits")
    model = adapt(pre, 10)
    dl = Loader(few_shot(split.train, 2, 0), 16, pre.transform, shuffle=True)
    seen = [s for s in run_phases(model, dl, scaled(strategy(name, model), epochs=2))]
    assert seen and all(p.isfinite().all() for p in model.parameters())


def phi(pre, x):
    return extract(pre.backbone, Loader(Sounds(x, torch.zeros(len(x)).long()), 100, pre.transform)).x


@pytest.fixture(scope="module")
def heard():
    torch.manual_seed(0)
    nets = dict(pre=load_pretrained("hearing"), random=zoo.network("hearing", weights=False))
    return nets, {k: phi(p, MADE.x) for k, p in nets.items()}


def probed(z, r, way, shots=10):
    "Mean accuracy of three draws of labels."
    s = split_recordings(replace(r, x=torch.arange(len(r.x))[:, None].short()), way)
    of = lambda ds: Features(z[ds.x[:, 0].long()], ds.y)
    heads = [solve_head(of(few_shot(s.train, shots, k)), len(s.classes), 0.01) for k in range(3)]
    return np.mean([accuracy(h.logits(of(s.test).x), s.test.y) for h in heads])


def test_accuracies_of_the_made_world_lie_where_they_were_measured(heard):
    _, z = heard
    source = speech.speech_source(512, 1)
    pre = heard[0]["pre"]
    with torch.no_grad():
        assert 0.93 < accuracy(pre.head(pre.backbone(pre.transform(source.x))), source.y) < 0.995
    assert 0.88 < probed(z["pre"], MADE, "") < 0.98
    unseen = {k: np.mean([probed(v, MADE, w) for w in WAYS[2:]]) for k, v in z.items()}
    assert 0.72 < unseen["pre"] < 0.9 and 0.6 < unseen["random"] < unseen["pre"]
    who = {k: probed(v, MADE, "who") for k, v in z.items()}
    assert 0.6 < who["pre"] < who["random"] < 0.9  # taught words, it threw the voices away


# real recordings


@pytest.fixture
def digits():
    try:
        return spoken.spoken_digits()
    except FileNotFoundError as e:
        pytest.skip(str(e))


def test_accuracies_on_real_recordings_lie_where_they_were_measured(digits, heard):
    z = {k: phi(p, digits.x) for k, p in heard[0].items()}
    assert 0.75 < probed(z["pre"], digits, "") < 0.88
    pairs = [probed(z["pre"], digits, w) for w in WAYS[2:]]
    assert 0.5 < min(pairs) < max(pairs) < 0.85 and max(pairs) - min(pairs) > 0.08  # which pair matters
    assert 0.7 < probed(z["pre"], digits, "who") < 0.9
    assert digits.word.bincount().tolist() == [120] * 10 and digits.who.bincount().tolist() == [200] * 6
    assert probed(torch.randn(1200, 50), digits, "") < 0.2


def test_a_real_word_is_cut_to_itself(digits):
    found = []
    for w in to_waves(digits.x[::24]):
        room = 0.002 * float(w.abs().max()) * torch.randn(4000)
        found.append(len(cut_to_speech(torch.cat([room, w, room]).numpy())) / len(w))
    assert 0.6 < np.mean(found) < 1.1


@pytest.fixture
def published(tmp_path, monkeypatch):
    "Twelve small recordings in the place of the published ones; `(mirror, home)`."
    mirror, home = tmp_path / "mirror", tmp_path / "home"
    mirror.mkdir()
    takes = []
    for k in range(12):
        blob = wav((tone(300 + k, 0.1 + k / 100) * 2**15).astype(np.int16))
        (mirror / f"{k}_x_0.wav").write_bytes(blob)
        takes.append(spoken.Take(k % 10, 1 + k % 6, k // 10, f"{k}_x_0.wav", git_blob(blob)))
    monkeypatch.setattr(spoken, "manifest", lambda: tuple(takes))
    monkeypatch.setattr(spoken, "data_folders", lambda name: [home / name])
    monkeypatch.setenv("SFT_NB_MIRROR", str(mirror))
    spoken._read.cache_clear()
    yield mirror, home / "spoken_digits", takes
    spoken._read.cache_clear()


def test_recordings_are_fetched_and_their_licence_is_told(published, capsys):
    _, home, takes = published
    with pytest.raises(FileNotFoundError, match="run `sft_nb fetch spoken_digits` where there is a network"):
        load_split("spoken_digits")
    assert main(["fetch", "spoken_digits_who"]) == 0
    said = capsys.readouterr()
    assert said.out == f"spoken_digits_who\t{home}\n" and "12 recordings to fetch (Z. Jackson" in said.err
    assert "CC BY-SA 4.0" in said.err and "CC BY-SA 4.0" in (home / "SOURCE.txt").read_text(encoding="utf-8")
    assert main(["fetch", "spoken_digits"]) == 0 and capsys.readouterr().err == ""
    r = spoken.spoken_digits()
    assert r.word.tolist() == [t.word for t in takes] and r.x.shape == (12, 1680)
    with zipfile.ZipFile(home / "spoken_digits.zip", "w") as z:
        for t in takes:
            z.write(home / t.file, t.file)
    spoken._read.cache_clear()
    assert torch.equal(spoken.spoken_digits().x, r.x)
    (home / "spoken_digits.zip").unlink()
    (home / takes[3].file).write_bytes(GOOD)
    spoken._read.cache_clear()
    with pytest.raises(
        ValueError, match="is not the published file: move it away, and run `sft_nb fetch spoken_digits`"
    ):
        spoken.spoken_digits()


def test_a_recording_that_is_another_one_is_not_kept(published):
    mirror, home, takes = published
    (mirror / takes[5].original).write_bytes(GOOD)
    with pytest.raises(OSError, match="1 of 12 recordings are not here yet .5_x_0.wav is not the published file"):
        zoo.bring("spoken_digits")
    assert not (home / takes[5].file).exists() and (home / takes[0].file).is_file()


def test_the_manifest_names_every_recording_once():
    m = spoken.manifest()
    assert (
        len({(t.word, t.speaker, t.take) for t in m})
        == len({t.git_blob_sha1 for t in m})
        == len({t.file for t in m})
        == 1200
    )
    assert all(re.fullmatch(r"[0-9a-f]{40}", t.git_blob_sha1) for t in m) and {t.take for t in m} == {*range(20)}


def test_one_experiment_by_the_command_line(capsys):
    assert main(["run", "--pretrained", "hearing", "--task", "made_digits_by_2", "--format", "json"]) == 0
    assert 0.5 < float(re.search(r'"accuracy": ([\d.]+)', capsys.readouterr().out)[1]) < 0.9


# strings


def test_the_loss_is_that_of_all_paths():
    "All paths of five moments and four tokens, for strings of every kind."
    p = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    found = {}
    for path in itertools.product(range(4), repeat=5):
        said = tuple(collapse(path))
        found[said] = found.get(said, 0.0) + float(p[range(5), path].prod())
    for said, q in found.items():
        if said:
            loss = float(ctc(p.log()[None], torch.tensor([5]), [said])) * len(said)
            assert abs(loss + np.log(q)) < 1e-4
    assert abs(sum(found.values()) - 1) < 1e-5 and (1, 1, 1) in found and (1, 1, 1, 1) not in found
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    assert abs(2 * float(ctc(p.log()[None], torch.tensor([3]), [[1, 2]])) - 0.8462983600541203) < 1e-6
    with pytest.raises(ValueError, match="string 0 needs 7 moments and has 5"):
        ctc(torch.zeros(1, 5, 4), torch.tensor([5]), [[1, 1, 1, 1]])


def test_edits_are_those_of_all_ways():
    "Against the definition, by recursion over everything that can be done."

    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    g = np.random.default_rng(0)
    for _ in range(60):
        a, b = (g.integers(1, 4, g.integers(0, 6)).tolist() for _ in range(2))
        assert edits(a, b) == slow(tuple(a), tuple(b)) == edits(b, a)
    assert token_error([[1, 2]], [[1, 2]]) == 0 and token_error([[]], [[1, 2]]) == 1


def test_moments_are_the_sounds_own_and_a_string_is_learned():
    torch.manual_seed(0)
    ds, said = strings(MADE, 24, (MADE.who == 0) & (MADE.take < 2), 3, longest=2)
    pre = load_pretrained("hearing")
    model = Speller(pre.backbone, speech.WIDTH, 11).eval()
    x = pre.transform(ds.x)
    _, moments = model(x)
    assert moments.tolist() == [math.ceil(math.ceil(n / HOP) / 2) for n in lengths(ds.x).tolist()]
    assert model.write(x[:1]) == model.write(pre.transform(ds.x[:1]))  # alone as beside others
    losses = [*spell(model, x, said, 120)]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10]) and token_error(model.write(x), said) < 0.4


# a network that speaks


def test_distortion_is_the_root_mean_square_in_decibels():
    "With all coefficients but the level; the oracle knows no cosine transform."
    g = np.random.default_rng(0)
    for _ in range(5):
        a, b = torch.from_numpy(g.random((2, 40, 1)))
        dB = ((a - b) * 50).numpy()  # 1 is 50 dB
        assert abs(mcd(cepstra(a, 39), cepstra(b, 39)) - np.sqrt(((dB - dB.mean()) ** 2).mean())) < 1e-9
        assert mcd(cepstra(a), cepstra(a + 0.1)) < 1e-9  # louder is the same


def test_warping_finds_the_best_of_all_ways():
    def ways(i, j, n, m):
        if (i, j) == (n - 1, m - 1):
            yield [(i, j)]
        for di, dj in ((1, 1), (1, 0), (0, 1)):
            if i + di < n and j + dj < m:
                yield from ([(i, j), *rest] for rest in ways(i + di, j + dj, n, m))

    g = np.random.default_rng(0)
    for _ in range(10):
        a, b = g.random((4, 2)), g.random((g.integers(1, 5), 2))
        costs = [[np.linalg.norm(a[i] - b[j]) for i, j in way] for way in ways(0, 0, len(a), len(b))]
        best = min(costs, key=sum)
        assert abs(mcd(a, b) - 10 * 2**0.5 / np.log(10) * np.mean(best)) < 1e-9


def test_a_sound_comes_back_from_its_picture():
    for f in (400, 1000, 2500):
        m = pictures(to_rows([torch.from_numpy(tone(f, 0.5))]))[0]
        x = griffin_lim(m)
        assert x.dtype == np.float32 and abs(np.abs(x).max() - 0.5) < 1e-3 and abs(loudest(x) - f) < 60
    real = pictures(MADE.x[5:6])[0]
    again = pictures(to_rows([torch.from_numpy(griffin_lim(real))]))[0]
    assert mcd(cepstra(real), cepstra(again)) < 3.5


def test_only_what_is_named_moves_and_words_are_learned():
    torch.manual_seed(0)
    quiet = speech.made_digits(noise=(30, 45))
    net = Talker(10, 6)
    rows = ((quiet.who == 0) & (quiet.word < 2) & (quiet.take < 3)).nonzero()[:, 0]
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    chosen, steps, lr = ADAPT["41 biases"]
    teach(net, quiet, rows, chosen(net), steps, lr)
    assert {n for n, p in net.named_parameters() if not torch.equal(p, before[n])} == {"last.bias", "length.bias"}
    teach(net, quiet, rows, [*net.parameters()], 150, 2e-3)
    said = say_all(net, 0)
    real = [pictures(quiet.x[(quiet.who == 0) & (quiet.word == w) & (quiet.take == 10)])[0] for w in (0, 1)]
    near = lambda a, b: mcd(cepstra(a), cepstra(b))
    assert near(said[0], real[0]) < near(said[0], real[1]) and near(said[1], real[1]) < near(said[1], real[0])
