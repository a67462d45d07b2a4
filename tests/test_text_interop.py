"Text backbones beside Hugging Face's own libraries: Transformers' outputs, its Trainer, and peft's adapters."

import copy
import errno
import json
import pickle
import shutil
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sft_nb import adapters, zoo
from sft_nb.adapters import CONFIG, HEAD, WEIGHTS, load_adapter, save_adapter
from sft_nb.cache import Cache, cache_key, cached, key_parts
from sft_nb.data import Loader
from sft_nb.experiments import run
from sft_nb.features import extract
from sft_nb.freezing import freeze, moved, trainable, unchanged
from sft_nb.models import TransferModel, adapt, load_pretrained, snapshot
from sft_nb.peft import LoRA, add_lora, merge_lora
from sft_nb.records import Config, read_records
from sft_nb.sources.text import encoder
from sft_nb.store import StoreError
from sft_nb.sweeps import sweep
from sft_nb.texts import LONGEST, Texts, to_rows

from safetensors.torch import load_file, save_file  # isort: skip

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the extra `text`")

pytestmark = pytest.mark.xdist_group("texts")  # what they share is loaded once, by one worker

WORDS = "the a film food was is good bad cold warm waiter actor not very".split()
SHAPE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.2)
TEXTS = ["the film was good", "cold", "the waiter was not very warm but the food is good and the actor bad", "a a a"]
QV = dict(bert=("query", "value"), roberta=("query", "value"), distilbert=("q_lin", "v_lin"))
KINDS = tuple(QV)


def wordpiece():
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *WORDS]
    vocab += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    return transformers.BertTokenizerFast({w: i for i, w in enumerate(vocab)}, model_max_length=64)


def byte_level():
    "RoBERTa's: its padding is number 1, and its places begin behind that."
    from tokenizers import pre_tokenizers

    vocab = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return transformers.RobertaTokenizerFast({w: i for i, w in enumerate(vocab)}, [], model_max_length=128)


def tiny(kind, tokenizer):
    n = len(tokenizer)
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(vocab_size=n, **SHAPE))
    if kind == "roberta":
        about = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, max_position_embeddings=130, type_vocab_size=1)
        return transformers.RobertaModel(transformers.RobertaConfig(vocab_size=n, **SHAPE, **about))
    about = dict(dim=16, n_layers=2, n_heads=2, hidden_dim=32, initializer_range=0.2)
    return transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=n, **about))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder of Transformers for each kind."
    where = tmp_path_factory.mktemp("networks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, kind in enumerate(KINDS):
            torch.manual_seed(k)
            tokenizer = byte_level() if kind == "roberta" else wordpiece()
            tiny(kind, tokenizer).save_pretrained(where / kind)
            tokenizer.save_pretrained(where / kind)
    return where


@pytest.fixture
def folder(home, tmp_path):
    "A BERT of the test's own, to spoil."
    return shutil.copytree(home / "bert", tmp_path / "bert")


def loaded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModel.from_pretrained(folder).eval()


def by_hand(net, folder, texts):
    "The mean over a text's pieces, from Transformers' own tokenizer and output; text by text."
    tokenizer, rows = transformers.AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        asked = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            rows.append(net(**asked).last_hidden_state[0].mean(0))
    return torch.stack(rows)


def features(model, pre, texts):
    with torch.no_grad():
        return model(pre.transform(to_rows(texts)))


def close(a, b, tol=1e-6):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# --- an encoder from a folder ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_masked_mean_is_that_of_the_library_and_knows_no_company(home, kind):
    pre = encoder(home / kind)
    want = by_hand(loaded(home / kind), home / kind, TEXTS)
    close(features(pre.backbone, pre, TEXTS), want)
    close(features(pre.backbone, pre, TEXTS[::-1]), want.flip(0))
    for k, text in enumerate(TEXTS):
        close(features(pre.backbone, pre, [text])[0], want[k])
    ids = pre.transform(to_rows(TEXTS))
    with torch.no_grad():  # more padding, as beside a text that is not there
        close(pre.backbone(nn.functional.pad(ids, (0, 17), value=pre.backbone.pad)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_the_first_piece_are_the_librarys(home, kind):
    net, tokenizer = loaded(home / kind), transformers.AutoTokenizer.from_pretrained(home / kind)
    with torch.no_grad():
        all_layers = net(**tokenizer(["the film"], return_tensors="pt"), output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        pre = encoder(home / kind, pool="first", layer=layer)
        close(features(pre.backbone, pre, ["the film"])[0], all_layers[layer][0, 0])


def no_config(folder):
    (folder / "config.json").unlink()
    return "it holds no config.json"


def a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return "pytorch_model.bin is a pickle"


def a_tokenizer_that_knows_more(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"more{i}" for i in range(9)])
    tokenizer.save_pretrained(folder)
    return "they do not belong together"


def half_of_the_weights(folder):
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if ".layer.1." not in n}, folder / "model.safetensors", dict(format="pt"))
    return "are missing"


def a_file_cut_off(folder):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    return "cannot be read as an encoder of text"


def weights_of_another_shape(folder):
    state = load_file(folder / "model.safetensors")
    save_file({n: t[..., :8].contiguous() for n, t in state.items()}, folder / "model.safetensors", dict(format="pt"))
    return "cannot be read as an encoder of text"


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    return "there is no tokenizer in it"


def a_config_of_noise(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")
    return "cannot be read as an encoder of text"


SPOILT = [
    no_config, a_pickle, a_tokenizer_that_knows_more, half_of_the_weights, a_file_cut_off, weights_of_another_shape,
    no_tokenizer, a_config_of_noise,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_folder_is_refused_in_one_sentence(folder, spoil):
    said = spoil(folder)
    with pytest.raises(ValueError, match=said) as e:
        encoder(folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 700


def test_an_unknown_layer_or_pool_is_refused(home):
    for layer in (3, -1):
        with pytest.raises(ValueError, match=f"from 0 .* to 2 .*; got {layer}"):
            encoder(home / "bert", layer=layer)
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        encoder(home / "bert", pool="max")


def test_a_name_of_the_hub_without_a_network_is_one_sentence(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="no network of this name could be had from the Hugging Face hub") as e:
        load_pretrained("nobody/no-such-encoder")
    assert "\n" not in str(e.value)


def test_a_text_of_100_000_words_is_cut_with_a_warning(home):
    pre = encoder(home / "bert")
    with pytest.warns(UserWarning, match=f"longer than {LONGEST:,} bytes and were cut"):
        rows = to_rows(["good " * 100_000, "bad"])
    with pytest.warns(UserWarning, match="more than 64 pieces: the rest of them is not read"):
        ids = pre.transform(rows)
    assert ids.shape == (2, 64)
    with torch.no_grad():
        assert pre.backbone(ids).isfinite().all()
        close(pre.backbone(ids)[1], features(pre.backbone, pre, ["bad"])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_transform_can_be_copied_and_sent(home, kind):
    transform = encoder(home / kind).transform
    want = transform(to_rows(TEXTS))
    for again in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert again == transform and torch.equal(again(to_rows(TEXTS)), want)


# --- its features, kept and in half precision ---


def loader(pre, n=8):
    return Loader(Texts(TEXTS * (n // 4), torch.arange(n) % 2), 4, pre.transform)


def test_features_are_kept_under_the_tokenizer_the_layer_and_the_pool(home, folder):
    pre = encoder(home / "bert")
    key = lambda pre: cache_key(pre.backbone, loader(pre))
    assert key(pre) == key(encoder(home / "bert"))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # which of them counts, depends on the library's version
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace('"lowercase": true', '"lowercase": false').replace(
            '"do_lower_case": true', '"do_lower_case": false'
        )
        (folder / name).write_text(text, encoding="utf-8")
    others = [encoder(folder), encoder(home / "bert", layer=1), encoder(home / "bert", pool="first")]
    assert len({key(p) for p in (pre, *others)}) == 4
    assert others[0].transform.rules != pre.transform.rules
    told = key_parts(pre.backbone, loader(pre))
    assert [k for k, v in key_parts(pre.backbone, loader(others[0])).items() if told[k] != v], "the tokenizer alone"


def test_features_come_back_from_the_folder_as_they_were(home, tmp_path):
    pre = encoder(home / "bert")
    first, second = (cached(pre.backbone, loader(pre), cache=Cache(tmp_path)) for _ in range(2))
    assert torch.equal(first.x, second.x) and len(Cache(tmp_path).files()) == 1
    close(first.x[:4], by_hand(loaded(home / "bert"), home / "bert", TEXTS), 1e-5)


def test_extraction_in_half_precision(home):
    pre = encoder(home / "bert")
    full = extract(pre.backbone, loader(pre)).x
    half = extract(pre.backbone, loader(pre), torch.bfloat16).x
    assert half.dtype == torch.float32 and (half - full).norm() < 0.02 * full.norm()
    stored = copy.deepcopy(pre.backbone).bfloat16()  # such as it lies in many files
    assert (extract(stored, loader(pre)).x - full).norm() < 0.02 * full.norm()


# --- a whole experiment ---


@pytest.fixture
def table(tmp_path):
    lines = [f"the {a} was {b} {c},{b}" for a in WORDS for b in ("good", "bad") for c in ("not", "very")]
    (tmp_path / "mine.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    return tmp_path / "mine.csv"


def test_a_folder_and_a_table_give_a_record_that_knows_both(folder, table, tmp_path):
    config = Config(pretrained=str(folder), task=str(table), shots=4)
    record = run(config, keep=tmp_path / "kept")
    assert record.theta == zoo.theta_digest(folder) and len(record.theta) == 64 and len(record.data) == 64
    assert 0 <= record.scores["accuracy"] <= 1 and record.gap is not None


def test_a_folder_that_changed_is_another_experiment(folder, table, tmp_path):
    config, path = Config(pretrained=str(folder), task=str(table), shots=4), tmp_path / "records.jsonl"
    sweep([config], path)
    sweep([config], path)
    assert len(read_records(path)) == 1
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    sweep([Config(pretrained=str(elsewhere), task=str(table), shots=4)], path)
    assert len(read_records(path)) == 1, "the same network in another place"
    state = load_file(folder / "model.safetensors")
    state["embeddings.word_embeddings.weight"] += 0.1 * torch.randn_like(state["embeddings.word_embeddings.weight"])
    save_file(state, folder / "model.safetensors", dict(format="pt"))
    sweep([config], path)
    records = read_records(path)
    assert len(records) == 2 and len({r.theta for r in records}) == 2


# --- under Transformers' Trainer ---


def trainer(model, pre, where, steps=4):
    pytest.importorskip("accelerate")
    rows = [dict(row=r, labels=k % 2) for k, r in enumerate(to_rows(TEXTS * 4))]

    def collate(some):
        return dict(
            x=pre.transform(torch.stack([s["row"] for s in some])), labels=torch.tensor([s["labels"] for s in some])
        )

    args = transformers.TrainingArguments(
        str(where), max_steps=steps, per_device_train_batch_size=4, learning_rate=0.01, report_to="none", use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    loss = lambda logits, y, num_items_in_batch=None: nn.functional.cross_entropy(logits, y)
    return transformers.Trainer(model, args, collate, rows, compute_loss_func=loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_a_frozen_backbone_trains_under_the_trainer_and_nothing_but_the_head_moves(home, kind, tmp_path):
    pre = encoder(home / kind)
    model = adapt(pre, 2)
    freeze(model, "backbone.*")
    head = snapshot(model.head)
    with unchanged(model.backbone):
        trainer(model, pre, tmp_path).train()
    assert moved(head, snapshot(model.head)).keys() == {"weight", "bias"}
    assert not any(m.training for m in model.backbone.modules()), "no dropout in what is frozen"
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_lora_trains_under_the_trainer_and_its_base_stays(home, tmp_path):
    pre = encoder(home / "bert")
    model = add_lora(adapt(pre, 2), 2, 4, "*.query", "*.value")
    before = snapshot(model)
    trainer(model, pre, tmp_path).train()
    assert moved(before, snapshot(model)).keys() == trainable(model).keys()
    save_adapter(model, tmp_path / "adapter", pre)


# --- adapters: against peft itself ---


def learned(model):
    "LoRA whose update is not zero any more."
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, LoRA):
                m.lora_B.normal_(0, 0.2)
    return model.eval()


def lora(pre, *patterns, rank=3, alpha=5, classes=3):
    return learned(add_lora(adapt(pre, classes), rank, alpha, *patterns))


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


def read_by_peft(peft, net, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        warnings.filterwarnings("error", "Found missing adapter keys")
        return peft.PeftModel.from_pretrained(net, folder).eval()


def written_by_peft(peft, net, folder, **about):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(net, peft.LoraConfig(**(dict(init_lora_weights=False) | about))).eval()
        wrapped.save_pretrained(folder)
    return wrapped


def adapted(peft, net):
    return {n for n, m in net.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_we_write(home, tmp_path, peft, kind):
    pre = encoder(home / kind)
    model = lora(pre, *(f"*.{n}" for n in QV[kind]))
    assert (features(model.backbone, pre, TEXTS) - features(pre.backbone, pre, TEXTS)).abs().max() > 0.01
    save_adapter(model, tmp_path / "a", pre)
    net = read_by_peft(peft, loaded(home / kind), tmp_path / "a")
    theirs = by_hand(net, home / kind, TEXTS)
    close(features(model.backbone, pre, TEXTS), theirs)
    head = load_file(tmp_path / "a" / HEAD)
    close(features(model, pre, TEXTS), theirs @ head["weight"].T + head["bias"], 2e-6)
    assert json.loads((tmp_path / "a" / CONFIG).read_text(encoding="utf-8"))["target_modules"] == [
        n for n, m in model.backbone.net.named_modules() if isinstance(m, LoRA)
    ]
    close(by_hand(net.merge_and_unload(), home / kind, TEXTS), features(merge_lora(model).backbone, pre, TEXTS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("r", "alpha"), [(1, 1), (2, 16), (3, 0.5)])
def test_we_read_what_peft_writes(home, tmp_path, peft, kind, r, alpha):
    wrapped = written_by_peft(
        peft, loaded(home / kind), tmp_path / "a", r=r, lora_alpha=alpha, target_modules=[*QV[kind]], lora_dropout=0.1
    )
    pre = encoder(home / kind)
    model = adapt(pre, 3)
    head, stream = snapshot(model.head), torch.get_rng_state()
    assert load_adapter(model, tmp_path / "a") is model
    assert torch.equal(stream, torch.get_rng_state()), "the reader's random numbers"
    close(features(model.eval().backbone, pre, TEXTS), by_hand(wrapped, home / kind, TEXTS))
    assert not moved(head, snapshot(model.head))
    assert {n.rpartition(".")[2] for n in trainable(model)} == {"lora_A", "lora_B", "weight", "bias"}
    assert all("lora" in n or n.startswith("head.") for n in trainable(model))


def test_what_peft_made_of_ours_comes_back(home, tmp_path, peft):
    "Written by us, read and written again by peft, read by us: every bit."
    pre = encoder(home / "bert")
    model = lora(pre, "*.query", "*.value")
    save_adapter(model, tmp_path / "a", pre)
    read_by_peft(peft, loaded(home / "bert"), tmp_path / "a").save_pretrained(tmp_path / "b")
    ours, theirs = (load_file(tmp_path / where / WEIGHTS) for where in "ab")
    assert not moved(ours, theirs)
    again = load_adapter(adapt(pre, 3), tmp_path / "b")
    assert not moved(snapshot(model.backbone), snapshot(again.backbone))


@pytest.mark.parametrize("patterns", [("*.layer.0.*.query",), ("*.layer.1.*",), ("*.dense", "*.key"), ()])
def test_peft_puts_lora_on_our_layers_and_on_no_others(home, tmp_path, peft, patterns):
    pre = encoder(home / "bert")
    model = lora(pre, *patterns)
    save_adapter(model, tmp_path / "a", pre)
    net = read_by_peft(peft, loaded(home / "bert"), tmp_path / "a")
    ours = {n for n, m in model.backbone.net.named_modules() if isinstance(m, LoRA)}
    assert {n.removeprefix("base_model.model.") for n in adapted(peft, net)} == ours
    close(features(model.backbone, pre, TEXTS), by_hand(net, home / "bert", TEXTS))


@pytest.mark.parametrize("patterns", [("backbone.conv1",), ("backbone.layer2.*",), ()])
def test_convolutions_of_pictures_too(tmp_path, peft, patterns):
    pre = load_pretrained("pocket")
    model = lora(pre, *patterns)
    save_adapter(model, tmp_path / "a", pre)
    net = read_by_peft(peft, copy.deepcopy(pre.backbone), tmp_path / "a")
    x = torch.randn(4, *pre.transform(pre.example[None]).shape[1:])
    with torch.no_grad():
        close(model.features(x), net(x), 1e-5)
        again = load_adapter(adapt(pre, 3), tmp_path / "a").eval()
        assert torch.equal(again(x), model(x))
        written_by_peft(peft, copy.deepcopy(pre.backbone), tmp_path / "b", r=2, target_modules=["conv2"])
        wrapped = read_by_peft(peft, copy.deepcopy(pre.backbone), tmp_path / "b")
        close(load_adapter(adapt(pre, 3), tmp_path / "b").eval().features(x), wrapped(x), 1e-5)


def test_a_network_alone_needs_no_head(home, tmp_path, peft):
    net = loaded(home / "bert")
    base = copy.deepcopy(net)
    model = learned(add_lora(net, 2, 4, "*.query"))
    save_adapter(model, tmp_path / "a", base)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [CONFIG, WEIGHTS]
    close(
        by_hand(read_by_peft(peft, copy.deepcopy(base), tmp_path / "a"), home / "bert", TEXTS),
        by_hand(model, home / "bert", TEXTS),
    )
    assert not moved(snapshot(load_adapter(base, tmp_path / "a")), snapshot(model))


# --- adapters: what is refused, and what is left behind ---


@pytest.fixture
def adapter(home, tmp_path):
    "A folder of ours, and what it is of."
    pre = encoder(home / "bert")
    model = lora(pre, "*.query", "*.value")
    return save_adapter(model, tmp_path / "adapter", pre), model, pre


def test_every_bit_comes_back_with_the_head(adapter):
    where, model, pre = adapter
    assert not moved(snapshot(model), snapshot(load_adapter(adapt(pre, 3), where)))


def says(**about):
    def spoil(folder):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps(config | about), encoding="utf-8")

    return spoil


def holds(change):
    def spoil(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, dict(format="pt"))

    return spoil


def renamed(old, new):
    return lambda tensors: {n.replace(old, new): t for n, t in tensors.items()}


def gone(*files):
    return lambda folder: [(folder / f).unlink() for f in files]


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


REFUSED = {
    "no text": (gone(CONFIG), "is no adapter, since it holds no adapter_config.json"),
    "no matrices": (gone(WEIGHTS), "is no adapter, since it holds no adapter_model.safetensors"),
    "a pickle": (pickled, "adapter_model.bin may be a pickle, and opening one may run any program"),
    "text of noise": (lambda f: (f / CONFIG).write_text("{"), "holds a damaged file"),
    "text of bytes": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "holds a damaged file"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "of the kind None"),
    "cut matrices": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "holds a damaged file"),
    "cut head": (lambda f: (f / HEAD).write_bytes((f / HEAD).read_bytes()[:-9]), "holds a damaged file"),
    "another kind": (says(peft_type="IA3"), "of the kind IA3, and here LORA alone"),
    "DoRA": (says(use_dora=True), "says use_dora=True"),
    "rsLoRA": (says(use_rslora=True), "says use_rslora=True"),
    "ranks": (says(rank_pattern={"query": 1}), "says rank_pattern="),
    "alphas": (says(alpha_pattern={"query": 1}), "says alpha_pattern="),
    "biases": (says(bias="lora_only"), "says bias=lora_only"),
    "PiSSA": (says(init_lora_weights="pissa"), "says init_lora_weights=pissa"),
    "whole layers": (says(modules_to_save=["classifier"]), "says modules_to_save="),
    "of next year": (says(use_something=[1]), "says use_something="),
    "no rank": (says(r=None), "says r=None and lora_alpha=5: it needs"),
    "rank 0": (says(r=0), "says r=0"),
    "true": (says(r=True), "says r=True"),
    "alpha of nan": (says(lora_alpha=float("nan")), "lora_alpha=nan"),
    "alpha of text": (says(lora_alpha="5"), "it needs a whole number and a positive one"),
    "another rank": (says(r=2), "or not r=2"),
    "another layer": (holds(renamed("layer.1", "layer.7")), "unknown layer pattern .*layer.7"),
    "other names": (holds(renamed("base_model.model.", "")), "is no A or B of a layer"),
    "a classifier": (holds(lambda t: t | {"base_model.model.classifier.weight": torch.ones(3, 16)}), "is no A or B"),
    "no B": (holds(lambda t: {n: v for n, v in t.items() if "lora_A" in n}), "B of .* is missing"),
    "turned": (holds(lambda t: {n: v.T.contiguous() for n, v in t.items()}), "A of .* another network"),
    "nothing": (holds(lambda t: {}), "holds no A and no B"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_does_not_fit_is_refused_and_nothing_changed(adapter, name):
    where, _, pre = adapter
    spoil, said = REFUSED[name]
    spoil(where)
    model = adapt(pre, 3)
    before, kinds = snapshot(model), [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=said) as e:
        load_adapter(model, where)
    assert "\n" not in str(e.value)
    assert not moved(before, snapshot(model)) and kinds == [type(m) for m in model.modules()]
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_that_does_not_fit_is_refused(adapter, home, tmp_path):
    where, model, pre = adapter
    with pytest.raises(ValueError, match="has LoRA already"):
        load_adapter(model, where)
    with pytest.raises(ValueError, match="adapt it to as many classes"):
        load_adapter(adapt(pre, 2), where)
    with pytest.raises(ValueError, match="unknown layer pattern"):
        load_adapter(adapt(load_pretrained("pocket"), 3), where)
    with pytest.raises(ValueError, match="is no adapter"):
        load_adapter(adapt(pre, 3), tmp_path / "nowhere")
    moved_on = adapt(pre, 3)
    with torch.no_grad():
        moved_on.backbone.net.embeddings.word_embeddings.weight[0, 0] += 1
    with pytest.raises(ValueError, match="was made on a base of other numbers"):
        load_adapter(moved_on, where)


def test_what_a_folder_cannot_hold_is_refused(home, tmp_path):
    pre = encoder(home / "bert")
    with pytest.raises(ValueError, match="the model has no LoRA"):
        save_adapter(adapt(pre, 3), tmp_path / "a", pre)
    with pytest.raises(ValueError, match="the model has no LoRA"):
        save_adapter(merge_lora(lora(pre, "*.query")), tmp_path / "a", pre)
    two = add_lora(add_lora(adapt(pre, 3), 2, 4, "*.query"), 3, 4, "*.value")
    with pytest.raises(ValueError, match=r"LoRA of several ranks and alphas, \[\(2, 4.0\), \(3, 4.0\)\]"):
        save_adapter(two, tmp_path / "a", pre)
    tuned = lora(pre, "*.query")
    with torch.no_grad():
        tuned.backbone.net.encoder.layer[0].output.LayerNorm.bias.add_(1)
    with pytest.raises(ValueError, match="LayerNorm.bias is not what it is in the base"):
        save_adapter(tuned, tmp_path / "a", pre)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for where in ("self_attn", "self_attn.out_proj"):
        with pytest.raises(ValueError, match=f"{where} is of torch's own attention"):
            net = nn.Sequential(copy.deepcopy(layer))
            save_adapter(add_lora(net, 2, 4, f"0.{where}"), tmp_path / "a", nn.Sequential(layer))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("last", [CONFIG, HEAD, WEIGHTS])
def test_a_full_disk_leaves_the_old_folder_or_none(adapter, tmp_path, monkeypatch, last):
    where, model, pre = adapter
    real = adapters.replacing

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def replacing(path):
        with real(path) as f:
            yield Full() if path.name == last else f

    monkeypatch.setattr(adapters, "replacing", replacing)
    other = lora(pre, "*.key", rank=2)
    for folder in (where, tmp_path / "new"):
        with pytest.raises(StoreError, match="free some space"):
            save_adapter(other, folder, pre)
    assert not list((tmp_path / "new").iterdir())
    assert sorted(p.name for p in where.iterdir()) == sorted([CONFIG, HEAD, WEIGHTS])
    assert not moved(snapshot(model), snapshot(load_adapter(adapt(pre, 3), where)))


def test_a_folder_is_replaced_and_its_old_head_goes(adapter):
    where, _, pre = adapter
    net = learned(add_lora(copy.deepcopy(pre.backbone), 1, 2, "*.key"))
    save_adapter(net, where, pre)
    assert sorted(p.name for p in where.iterdir()) == [CONFIG, WEIGHTS]
    assert not moved(snapshot(net), snapshot(load_adapter(copy.deepcopy(pre.backbone), where)))


def test_a_file_in_the_way_is_one_sentence(adapter, tmp_path):
    _, model, pre = adapter
    (tmp_path / "taken").touch()
    with pytest.raises(StoreError, match="a file stands where a folder should be"):
        save_adapter(model, tmp_path / "taken", pre)


def test_peft_is_not_needed(adapter):
    "The module itself imports neither peft nor Transformers."
    import ast

    names = {
        n.name
        for node in ast.walk(ast.parse(open(adapters.__file__, encoding="utf-8").read()))
        if isinstance(node, ast.Import)
        for n in node.names
    }
    names |= {
        node.module
        for node in ast.walk(ast.parse(open(adapters.__file__, encoding="utf-8").read()))
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not {n.partition(".")[0] for n in names} & {"peft", "transformers"}


def test_a_transfer_model_is_what_comes_back(adapter):
    where, model, pre = adapter
    again = load_adapter(adapt(pre, 3), where)
    assert isinstance(again, TransferModel) and trainable(again).keys() == trainable(model).keys()
