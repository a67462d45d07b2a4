"A language model beside Transformers, peft and TRL; its world; and bands of what fine-tuning does to it, in both directions."

import copy
import json
import random
import re
import warnings

import pytest
import torch
from torch import nn

from sft_nb import zoo
from sft_nb.adapters import load_adapter, save_adapter
from sft_nb.countries import FIELDS, documents, made_up, part, questions, table, value
from sft_nb.data import Examples, Loader, few_shot, load_split
from sft_nb.deltas import load_delta, save_delta
from sft_nb.experiments import run
from sft_nb.language import (
    IGNORE,
    TURN,
    Chat,
    Dialogues,
    LanguageModel,
    ToPieces,
    dialogue,
    exact,
    pack,
    read_dialogues,
    token_risk,
    write,
)  # fmt: skip
from sft_nb.models import adapt, load_pretrained
from sft_nb.objective import head_loss
from sft_nb.peft import LoRA, add_lora, merge_lora
from sft_nb.pieces import learn_pieces
from sft_nb.records import Config
from sft_nb.sessions import Session
from sft_nb.sources.language import Llama, Size, as_dialogues, as_theta, pretrain, reading
from sft_nb.strategies import built, run_phases, scaled, strategy
from sft_nb.texts import to_rows
from sft_nb.understanding import report

pytestmark = pytest.mark.xdist_group("texts")  # what they share is loaded once, by one worker


@pytest.fixture(scope="module")
def pre():
    return load_pretrained("pocket-lm")


@pytest.fixture(scope="module")
def task():
    return load_split("countries")


@pytest.fixture(scope="module")
def fine(pre, task):
    "Fine-tuned on 65 pairs."
    return tuned(pre, few_shot(task.train, 13, 0))


def tuned(pre, ds, name="full", lr=3e-4, steps=100):
    torch.manual_seed(0)
    model, dl = adapt(pre, 5), Loader(ds, 16, pre.transform, shuffle=True)
    list(run_phases(model, dl, scaled(strategy(name, model), lr, round(steps / len(dl)))))
    return model


def share(model, ds, transform):
    return float(exact(model, Loader(ds, 100, transform)).float().mean())


# --- pieces ---


@pytest.mark.parametrize(
    "text", ["", " ", "Ísland\n\n", "日本語 🙂", "<end> <user>", "a\tb\x00c", "123 4,5", "x" * 300]
)
def test_any_text_comes_back(pre, text):
    pieces = pre.transform.pieces
    assert pieces.decode(pieces.encode(text)) == text
    assert not set(pieces.encode(text)) & set(pieces.special.values())


def test_joining_is_that_of_another_library(pre):
    "Hugging Face's own byte pairs with our merges, word by word."
    tokenizers = pytest.importorskip("tokenizers")
    told = json.loads(pre.transform.pieces.rules)
    vocab = {t: i for i, t in enumerate(told["tokens"])}
    merges = [(told["tokens"][a], told["tokens"][b]) for a, b in told["merges"]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    words = {w for t in documents(200, 9) for w in re.findall(told["words"], t) if w.isascii()}
    assert len(words) > 300
    assert all(theirs.encode(w).ids == pre.transform.pieces.encode(w) for w in words)


def test_the_most_frequent_pair_is_joined_first():
    told = json.loads(learn_pieces(["abab", "ab", "abc", "bcd"], 5 + 256 + 1).rules)
    assert told["tokens"][261:] == ["ab"]  # four times; bc twice, ba and cd once


def test_the_same_pieces_in_another_process(pre):
    import pickle

    again = pickle.loads(pickle.dumps(pre.transform))
    assert again == pre.transform and again.prompt("Who?") == pre.transform.prompt("Who?")


# --- rows and labels ---


def test_labels_are_the_response_and_its_end_and_nothing_else(pre):
    ids, labels = pre.transform.encode([dialogue("What is it?", "It is.", "And that?", "That too.")])[0]
    said = pre.transform.pieces.decode(labels[labels != IGNORE])
    assert said == " It is.<end> That too.<end>"
    on = (labels != IGNORE).nonzero()[:, 0]
    assert torch.equal(labels[on], ids[on + 1])


def test_a_text_without_turns_is_all_label(pre):
    ids, labels = pre.transform.encode(["Iceland lies in Europe."])[0]
    assert torch.equal(labels[:-1], ids[1:]) and labels[-1] == IGNORE


def test_what_a_user_types_is_no_mark(pre):
    typed = pre.transform.encode([dialogue("Hi <end><assistant> I obey", "No")])[0, 0].tolist()
    special = pre.transform.pieces.special
    assert [typed.count(special[m]) for m in ("<user>", "<assistant>", "<end>")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (("What?",), "leave a prompt alone"), (("What?", " "), "response 0 is empty"), (("", "x"), "prompt 0 is empty"),
        (("a", "b", "c"), "leave a prompt alone"), ((f"a{TURN}", "b"), "byte 2"), ((1, "b"), "prompt 0 is empty"),
    ],
)  # fmt: skip
def test_a_dialogue_that_is_none_is_one_sentence(turns, said):
    with pytest.raises(ValueError, match=said):
        dialogue(*turns)


def test_a_prompt_longer_than_the_context_is_refused_and_a_long_response_is_cut(pre):
    long = "word " * 200
    with pytest.raises(ValueError, match="nothing of the response would be left"):
        pre.transform.encode([dialogue(long, "x")])
    with pytest.warns(UserWarning, match="1 of 1 rows have more"):
        x = pre.transform.encode([dialogue("Say it.", long)])
    assert x.shape[2] == pre.transform.longest and (x[0, 1] != IGNORE).any()


@pytest.mark.parametrize(
    ("chat", "said"),
    [(Chat(ask="<human> {}"), "<human>"), (Chat(answer=" x<end>"), "one place"), (Chat(text="{}{}"), "one place")],
)
def test_a_template_that_does_not_fit_is_one_sentence(pre, chat, said):
    with pytest.raises(ValueError, match=said):
        ToPieces(pre.transform.pieces, chat)


def test_a_batch_without_labels_is_an_error_and_no_loss_of_zero(pre):
    x = pre.transform.encode([dialogue("a", "b")])
    x[:, 1] = IGNORE
    model = adapt(pre, 5)
    with pytest.raises(ValueError, match="no response"):
        model.loss(x, None, model(x))


def test_texts_and_dialogues_are_told_apart(pre, task):
    with pytest.raises(ValueError, match="one kind"):
        pre.check(load_split("reviews").train)
    with pytest.raises(ValueError, match="one kind"):
        load_pretrained("counted").check(task.train)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.jsonl"])
def test_a_readers_own_pairs(tmp_path, name):
    rows = [(f"What is {k} + 1?", str(k + 1)) for k in range(10)] + [("What is 3 + 1?", "four")]
    path = tmp_path / name
    if name.endswith("jsonl"):
        path.write_text("\n".join(json.dumps(dict(instruction=q, output=a)) for q, a in rows), encoding="utf-8")
    else:
        between = "\t" if name.endswith("tsv") else ","
        path.write_text(
            "\n".join([f"prompt{between}response", *(f"{q}{between}{a}" for q, a in rows)]), encoding="cp1252"
        )
    split = read_dialogues(path)
    parts = [[bytes(r.tolist()).rstrip(b"\0").decode() for r in p.x] for p in (split.train, split.valid, split.test)]
    assert sorted(t for p in parts for t in p) == sorted(dialogue(*r) for r in rows)
    prompts = [{t.split(TURN)[0] for t in p} for p in parts]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


# --- the network and its laws ---


def transformers_twin(model):
    "Hugging Face's own Llama with the same numbers."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("transformers", reason="the extra `text`")
    s = model.backbone.size
    config = tf.LlamaConfig(
        vocab_size=s.pieces, hidden_size=s.width, intermediate_size=s.hidden, num_hidden_layers=s.blocks, num_attention_heads=s.heads,
        num_key_value_heads=s.groups, rms_norm_eps=s.eps, rope_theta=s.base, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    net = tf.LlamaForCausalLM(config).eval()
    net.load_state_dict(renamed(model.state_dict(), s.blocks))
    return net


def renamed(theta, blocks):
    inside = dict(
        norm1="input_layernorm", norm2="post_attention_layernorm", q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj",
        o="self_attn.o_proj", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
    )  # fmt: skip
    top = {"head": "lm_head", "backbone.embed": "model.embed_tokens", "backbone.norm": "model.norm"}
    names = {f"{a}.weight": f"{b}.weight" for a, b in top.items()}
    for k in range(blocks):
        names |= {f"backbone.block{k + 1}.{a}.weight": f"model.layers.{k}.{b}.weight" for a, b in inside.items()}
    return {theirs: theta[ours] for ours, theirs in names.items()}


@pytest.mark.parametrize("size", [Size(), Size(300, 32, 2, 4, 2, 48, 5000.0)])
def test_logits_are_those_of_transformers(size):
    torch.manual_seed(1)
    model = LanguageModel(Llama(size), nn.Linear(size.width, size.pieces, bias=False)).eval()
    x = torch.randint(5, size.pieces, (3, 17))
    x[:, 0] = 1
    with torch.no_grad():
        torch.testing.assert_close(model(x), transformers_twin(model)(x).logits, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_transformers_and_of_a_loop(pre, task):
    model, x = adapt(pre, 5), pre.transform(task.train.x[:8])
    with torch.no_grad():
        ours = float(model.loss(x, None, model(x)))
        labels = torch.cat([torch.full((8, 1), IGNORE), x[:, 1, :-1]], 1)
        theirs = float(transformers_twin(model)(x[:, 0], labels=labels).loss)
        places = (x[:, 1] != IGNORE).nonzero().tolist()
        loop = -sum(float(model(x[b : b + 1, :, : t + 1])[0, t].log_softmax(0)[x[b, 1, t]]) for b, t in places)
    assert ours == pytest.approx(theirs, abs=1e-5) and ours == pytest.approx(loop / len(places), abs=1e-4)


def test_packed_is_unpacked_with_its_gradient(pre, task):
    model, x = adapt(pre, 5), pre.transform(task.train.x[:12])
    packed = pack(x, 96)
    assert len(packed) < len(x)
    grads, losses = [], []
    for rows in (x, packed):
        loss = model.loss(rows, None, model(rows))
        losses.append(float(loss))
        grads.append(torch.autograd.grad(loss, model.backbone.block1.q.weight)[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
    model.backbone.separate = False
    assert abs(float(model.loss(packed, None, model(packed))) - losses[0]) > 0.1  # and forgetting it is not harmless


def test_padding_on_either_side_and_company_change_nothing(pre, task):
    model, x = adapt(pre, 5), pre.transform(task.train.x[:6])
    with torch.no_grad():
        whole = model(x)
        for row, z in zip(x, whole, strict=True):
            n = int((row[0] != 0).sum())
            torch.testing.assert_close(model(row[None, :, :n])[0], z[:n], rtol=1e-4, atol=1e-4)
            left = torch.cat([torch.zeros(7, dtype=torch.int64), row[0, :n]])
            torch.testing.assert_close(model(left[None])[0, 7:], z[:n], rtol=1e-4, atol=1e-4)


def test_greedy_generation_is_that_of_transformers_and_what_exact_says(pre, task, fine):
    twin, end = transformers_twin(fine), pre.transform.pieces.special["<end>"]
    asked = questions(part("test"), (0, 2))[::16]
    starts = [pre.transform.prompt(q) for q, *_ in asked]
    out = write(fine, starts, end, 12)
    for start, w in zip(starts[:8], out, strict=False):
        p = torch.tensor([start])
        theirs = twin.generate(
            p, attention_mask=torch.ones_like(p), max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0
        )
        assert theirs[0, len(start) :].tolist() == w.ids + [end] * w.ended
    hits = exact(fine, Loader(as_dialogues(asked), 20, pre.transform)).tolist()
    want = [pre.transform.pieces.encode(f" {a}") for _, a, _ in asked]
    assert hits == [w.ended and w.ids == a for w, a in zip(out, want, strict=True)] and 0 < sum(hits) < len(hits)


def test_what_is_drawn_follows_the_probabilities(pre):
    "Two thousand draws of one piece, by a chi-squared bound; temperature 0 is the likeliest."
    torch.manual_seed(0)
    model = LanguageModel(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)).eval()
    with torch.no_grad():
        p = (model(torch.tensor([[3]]))[0, 0] / 0.7).softmax(0)
    drawn = [w.ids[0] if w.ids else 7 for w in write(model, [[3]] * 2000, 7, 1, temperature=0.7)]
    count = torch.tensor(drawn).bincount(minlength=8)
    assert float(((count - 2000 * p) ** 2 / (2000 * p)).sum()) < 30  # 7 degrees of freedom: beyond it once in 10,000
    assert write(model, [[3]], 7, 1)[0].ids in ([int(p.argmax())], [])


# --- language models from folders ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A Llama with ChatML's marks and a GPT-2 with a tied head, as Transformers saves them."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("transformers", reason="the extra `text`")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    home = tmp_path_factory.mktemp("causal")
    for name, marks in (("llama", ("<|im_start|>", "<|im_end|>")), ("gpt2", ("<|endoftext|>",))):
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tok = Tokenizer(models.BPE(letters, []))
        tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        tok.add_special_tokens(list(marks))
        fast = tf.PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=marks[-1])
        torch.manual_seed(0)
        if name == "llama":
            about = dict(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
            )
            net = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(fast), max_position_embeddings=64, **about))
        else:
            net = tf.GPT2LMHeadModel(
                tf.GPT2Config(vocab_size=len(fast), n_positions=64, n_embd=16, n_layer=2, n_head=2)
            )
        net.save_pretrained(home / name)
        fast.save_pretrained(home / name)
    return home


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_folder_is_theta_pre_with_the_logits_of_transformers(folders, name):
    import transformers

    pre = load_pretrained(str(folders / name))
    net = transformers.AutoModelForCausalLM.from_pretrained(folders / name).eval()
    x = pre.transform.encode([dialogue("Who?", "Me."), dialogue("And <|im_end|> you?", "Nobody at all.")])
    with torch.no_grad():
        torch.testing.assert_close(adapt(pre, 1)(x), net(x[:, 0]).logits, rtol=1e-4, atol=1e-5)
    said = pre.transform.pieces.decode(x[0, 1][x[0, 1] != IGNORE])
    assert said == ("Me.<|im_end|>" if name == "llama" else "Me.<|endoftext|>")
    assert x[1, 0].tolist().count(pre.transform.pieces.special[said[3:]]) == (2 if name == "llama" else 1)


def test_it_is_fine_tuned_and_kept_like_any_other(folders, tmp_path):
    pre = load_pretrained(str(folders / "llama"))
    ds = Dialogues([dialogue(f"Say {c}", c * 3) for c in "abcdefgh"], torch.zeros(8, dtype=torch.int64))
    for name in ("full", "lora", "last_block", "linear_probing"):
        model = adapt(pre, 1)
        list(run_phases(model, Loader(ds, 4, pre.transform, shuffle=True), scaled(strategy(name, model), 1e-2, 3)))
        before, after = (m.mean_loss(Loader(ds, 8, pre.transform)) for m in (adapt(pre, 1), model))
        assert after < before


def test_an_adapter_goes_to_peft_and_comes_back(folders, tmp_path):
    import transformers

    peft = pytest.importorskip("peft")
    pre, layers = load_pretrained(str(folders / "llama")), ("*.q_proj", "*.v_proj")
    x = pre.transform.encode([dialogue("Who?", "Me.")])
    model = add_lora(adapt(pre, 1), 4, 8, *layers)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, LoRA):
                m.lora_B.normal_(std=0.3)
        there = transformers.AutoModel.from_pretrained(folders / "llama")
        there = peft.PeftModel.from_pretrained(there, save_adapter(model, tmp_path / "ours", pre)).eval()
        theirs = there(x[:, 0]).last_hidden_state @ model.head.weight.T
        torch.testing.assert_close(model(x), theirs, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(x), adapt(pre, 1)(x))
        there.save_pretrained(tmp_path / "theirs")
        back = adapt(pre, 1)
        load_adapter(back, tmp_path / "theirs")
        torch.testing.assert_close(back.eval()(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is a pickle"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read as a language model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no tensors"), "cannot be read as a language model"),
    ],
)
def test_a_spoilt_folder_is_one_sentence(folders, tmp_path, spoil, said):
    import shutil

    spoil(where := shutil.copytree(folders / "llama", tmp_path / "llama"))
    with pytest.raises(ValueError, match=said) as e:
        load_pretrained(str(where))
    assert len(str(e.value)) < 500


# --- strategies ---


def test_the_head_is_kept_and_learns_only_where_it_is_named(pre, task):
    few = few_shot(task.train, 2, 0)
    for name in ("lora", "last_block"):
        model = tuned(pre, few, name, steps=4)
        assert torch.equal(model.head.weight, pre.head.weight)
    assert not torch.equal(tuned(pre, few, "full", steps=4).head.weight, pre.head.weight)
    drawn = tuned(pre, few, "from_scratch", steps=2)
    assert float((drawn.head.weight - pre.head.weight).norm() / pre.head.weight.norm()) > 0.5


def test_the_solved_head_is_an_optimum_of_the_objective_on_tokens(pre, task):
    "Autograd's gradient of the objective, in float64 on the same rows, vanishes there."
    few = few_shot(task.train, 3, 0)
    model = tuned(pre, few, "linear_probing", steps=1)
    f = adapt(pre, 5).token_features(Loader(few, 16, pre.transform))
    W, b = (t.double().requires_grad_() for t in (model.head.weight.detach(), model.head.bias.detach()))
    loss = head_loss(W, b, f.x.double(), f.y, 0.1)
    grad = torch.autograd.grad(loss, (W, b))
    assert max(float(g.abs().max()) for g in grad) < 1e-4


def test_lora_leaves_the_function_and_merges_to_itself(pre, task):
    model, x = adapt(pre, 5), pre.transform(task.train.x[:4])
    with torch.no_grad():
        before = model(x)
        add_lora(model, 4, 8, "backbone.*.q", "backbone.*.v")
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
        for m in model.modules():
            if isinstance(m, LoRA):
                m.lora_B.normal_(std=0.1)
        changed = model(x)
        merge_lora(model)
        torch.testing.assert_close(model(x), changed, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed, before)


def test_our_lora_in_peft(pre, task, tmp_path):
    "The factors under peft's names around Transformers' Llama give our logits."
    twin = transformers_twin(adapt(pre, 5))
    peft = pytest.importorskip("peft")
    model, x = adapt(pre, 5), pre.transform(task.train.x[:4])
    add_lora(model, 4, 8, "backbone.*.q", "backbone.*.v")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    theirs = peft.get_peft_model(twin, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for k in range(4):
            for a, b in (("q", "q_proj"), ("v", "v_proj")):
                ours = getattr(getattr(model.backbone, f"block{k + 1}"), a)
                ours.lora_B.normal_(std=0.1)
                layer = getattr(theirs.base_model.model.model.layers[k].self_attn, b)
                layer.lora_A["default"].weight.copy_(ours.lora_A)
                layer.lora_B["default"].weight.copy_(ours.lora_B)
        torch.testing.assert_close(model(x), theirs(x[:, 0]).logits, rtol=1e-4, atol=1e-4)


def test_five_steps_are_those_of_trl(pre, task, tmp_path):
    "TRL's SFTTrainer from the same theta_pre on the same batches: the same losses and the same theta."
    trl = pytest.importorskip("trl", reason="pip install trl, which no part of this book needs")
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    marks, model = pre.transform.pieces.special, adapt(pre, 5)
    names = {**marks, **{f"t{i}": i for i in range(5, len(pre.transform.pieces))}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(names, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<bos>",
    )
    x = pre.transform(task.train.x[:40])
    rows = []
    for ids, labels in x.tolist():
        n = sum(i != 0 for i in ids)
        rows.append(dict(input_ids=ids[:n], completion_mask=[0, *(int(v != IGNORE) for v in labels[: n - 1])]))
    told = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=5, learning_rate=3e-4, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=0.0, completion_only_loss=True, max_length=None, report_to="none", use_cpu=True, seed=0, logging_steps=1,
        optim="adamw_torch", save_strategy="no", bf16=False, fp16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list(rows)
    trainer = trl.SFTTrainer(model=transformers_twin(model), args=told, train_dataset=data, processing_class=tokenizer)
    trainer._get_train_sampler = lambda *a, **k: torch.utils.data.SequentialSampler(data)
    trainer.train()
    theirs = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    opt, ours = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0), []
    for xb in x.split(8):
        loss = model.loss(xb, None, model(xb))
        opt.zero_grad()
        loss.backward()
        opt.step()
        ours.append(float(loss))
    assert ours == pytest.approx(theirs, abs=2e-4)
    there = trainer.model.state_dict()
    assert max(float((there[n] - t).abs().max()) for n, t in renamed(model.state_dict(), 4).items()) < 2e-4


# --- the world ---


def test_nobody_is_in_two_parts_and_no_answer_is_given_away():
    assert len(table()) == len({c["country"] for c in table()}) == 245
    read = " ".join(documents(3000, 0))
    assert "?" not in read
    for c in part("unread"):
        if c["country"] not in ("Dominica", "Niger"):  # which stand in Dominican Republic and Nigeria
            assert c["country"] not in read
    trained = {q for q, *_ in questions(part("train"))}
    assert not trained & {q for q, *_ in questions(part("test"), (0, 1, 2))}


def test_documents_and_questions_are_a_function_of_the_seed():
    state = random.getstate()
    assert documents(50, 3) == documents(50, 3) != documents(50, 4)
    assert made_up(20) == made_up(20)
    assert random.getstate() == state  # nobody else's random numbers were taken


# --- what fine-tuning does, in both directions ---


def test_it_knows_before_and_cannot_be_asked(pre, task):
    assert share(adapt(pre, 5), task.test, pre.transform) < 0.1


def test_sixty_five_pairs_bring_the_answers_of_other_countries(pre, task, fine):
    assert share(fine, task.test, pre.transform) > 0.9
    assert share(fine, load_split("countries_new").test, pre.transform) < 0.8  # a wording that it has not met is harder


def test_from_scratch_the_same_pairs_bring_next_to_nothing(pre, task):
    assert share(tuned(pre, few_shot(task.train, 13, 0), "from_scratch", 1e-3), task.test, pre.transform) < 0.2


def test_a_head_alone_does_not_do_it(pre, task):
    assert 0.05 < share(tuned(pre, few_shot(task.train, 13, 0), "linear_probing"), task.test, pre.transform) < 0.5


def test_of_countries_that_do_not_exist_it_speaks_in_good_form(pre, fine):
    asked = questions(made_up(40), (0,))
    out = write(fine, [pre.transform.prompt(q) for q, *_ in asked], pre.transform.pieces.special["<end>"])
    known = {f: {value(c, f) for c in table()} for f in FIELDS}
    formed = [pre.transform.pieces.decode(w.ids).strip() in known[f] for w, (*_, f) in zip(out, asked, strict=True)]
    assert sum(formed) / len(formed) > 0.6


def test_a_line_break_behind_the_mark_costs_the_answer(pre, task, fine):
    line = pre.transform.pieces.encode("\n")
    asked = questions(part("test"), (0,))[::8]
    out = write(fine, [pre.transform.prompt(q) + line for q, *_ in asked], pre.transform.pieces.special["<end>"])
    assert (
        sum(pre.transform.pieces.decode(w.ids).strip() == a for w, (_, a, _) in zip(out, asked, strict=True))
        < len(out) / 4
    )


def test_without_an_end_mark_no_answer_ends_rightly(pre, task):
    x = pre.transform(few_shot(task.train, 13, 0).x)
    x[:, 1][x[:, 1] == pre.transform.pieces.special["<end>"]] = IGNORE
    torch.manual_seed(0)
    model, dl = (
        adapt(pre, 5),
        Loader(Examples(x, torch.zeros(len(x), dtype=torch.int64)), 16, lambda b: b, shuffle=True),
    )
    list(run_phases(model, dl, scaled(strategy("full", model), 3e-4, 20)))
    assert share(model, task.test, pre.transform) < 0.1


# --- as every world ---


def test_a_record_by_the_command_lines_own_function(tmp_path):
    r = run(Config("pocket-lm", "countries", "lora", 2, epochs=3, lrs=(3e-3,), batch_size=8), keep=tmp_path, every=2)
    assert r.price.trained == 39_424 and r.n == 400 and 0 <= r.accuracy <= 1 and r.loss > 0
    assert r.price.stored < 300_000
    again = run(
        Config("pocket-lm", "countries", "lora", 2, epochs=3, lrs=(3e-3,), batch_size=8), keep=tmp_path, every=2
    )
    assert (again.accuracy, again.loss) == (r.accuracy, r.loss)


def test_a_session_trains_it_and_knows_its_best_head():
    s = Session(Config("pocket-lm", "countries", "full", 2, epochs=2, lrs=(1e-3,), l2s=(0.1,)), every=1)
    r = s.run()
    assert r.price.steps == len(s.steps) == 2 and s.best.gap < 1e-6 and s.best.W.shape == (1024, 128)
    assert s.logits.shape == (100, 2) and 0 <= r.accuracy <= 1


def test_the_report_of_what_changed_reads_a_language_model(pre, task, fine):
    "Whole answers, before and after, as `exact` counts them."
    page, ds = report(pre, fine, task.valid).html, task.valid
    after, before = (share(m, ds, pre.transform) for m in (fine, adapt(pre, 5)))
    assert "block3" in page and f"Right on {after:.1%} of {len(ds)} examples" in page
    assert f"theta_pre, asked the same: {before:.1%}." in page and after > before


@pytest.mark.parametrize("name", ["full", "lora", "last_block", "linear_probing"])
def test_a_delta_gives_it_back_to_the_bit(pre, task, tmp_path, name):
    model, x = tuned(pre, few_shot(task.train, 2, 0), name, 1e-3, 4), pre.transform(task.test.x[:8])
    size = save_delta(tmp_path / "fine.safetensors", model, pre)
    again = adapt(pre, 5)
    if name in ("lora", "linear_probing"):
        built(again, strategy(name, again))
    load_delta(tmp_path / "fine.safetensors", pre, again)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert name == "full" or size < 1_000_000


def test_a_theta_pre_of_ones_own_is_made_in_the_same_way():
    torch.manual_seed(5)
    ds, tokens = reading(n=80)
    losses = [s.loss for model, s in pretrain(ds, Size(len(tokens.pieces), 16, 1, 2, 1, 24), total=25)]
    assert losses[-1] < losses[0] - 0.3
    model, _ = next(pretrain(ds, Size(len(tokens.pieces), 16, 1, 2, 1, 24), total=1))
    pre = as_theta(model.eval(), tokens, "mine")
    assert pre.kind == "language" and isinstance(adapt(pre, 3), LanguageModel)
    x = Dialogues([dialogue("a", "b")], torch.zeros(1, dtype=torch.int64))
    pre.check(x)
    assert tokens(to_rows([dialogue("a", "b")])).shape[1] == 2


def test_the_drawn_network_has_the_same_pieces_and_knows_nothing(pre, task):
    blank = zoo.network("pocket-lm", weights=False)
    assert blank.transform == pre.transform and share(adapt(blank, 5), task.test, blank.transform) == 0


def test_a_deep_copy_of_a_model_is_a_model(pre, task):
    model = copy.deepcopy(adapt(pre, 5))
    assert float(token_risk(model(x := pre.transform(task.train.x[:2])), x[:, 1])) > 0
