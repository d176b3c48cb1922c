"""Harvests of tiny models against plain forward passes, and what is read back."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import store
from lib.config import ModelSection
from lib.lm import activations, harvest, model, residual, sequences, spans
from lib.lm.activations import Activations
from lib.lm.model import ModelError
from lib.lm.sequences import Sequences
from lib.texts import examples


def sequences_with_prefixes(seed: int, count: int = 40, vocab: int = 400) -> Sequences:
    rng = np.random.default_rng(seed)
    prefixes = [rng.integers(3, vocab, n).tolist() for n in (3, 30, 70)]
    prefixes[2] = prefixes[1][:20] + prefixes[2]  # one prefix branches off another
    rows = []
    for number in range(count):
        ids = prefixes[number % 3] + rng.integers(3, vocab, rng.integers(1, 25)).tolist()
        start = int(rng.integers(1, len(ids)))
        rows.append((ids, start, int(rng.integers(start, len(ids) + 1))))
    return Sequences.of(rows)


@store.cached
def made(out: Path, seed: int) -> None:
    sequences_with_prefixes(seed).save(out / "sequences.safetensors")


def test_harvest_equals_the_plain_forward_pass(
    tiny: ModelSection, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix sharing, sorting, padding, several batches of a prefix and stopping early change nothing: every kept token
    against a pass of its own."""
    monkeypatch.setattr(harvest, "BATCH_TOKENS", 60)
    rows, lm, layers = sequences_with_prefixes(1), model.load(model.pinned(tiny)), (1, 3)
    harvested = harvest.harvest(made(1), model.pinned(tiny), layers)
    for layer in layers:
        source = activations.read(harvested, layer, sinks=True)
        sequence, position, token = (source.column(name) for name in ("sequence", "position", "token"))
        x = source.gather(np.arange(len(source)))
        assert len(source) == rows.kept
        for index in range(len(rows)):
            with torch.inference_mode():
                states = lm.model(torch.from_numpy(rows[index].astype(np.int64))[None], output_hidden_states=True)
            here = np.flatnonzero(sequence == index)
            assert position[here].tolist() == list(range(rows.keep_start[index], rows.keep_stop[index]))
            assert token[here].tolist() == rows[index][position[here]].tolist()
            if layer < 3:  # transformers' last hidden state has the final norm applied
                expected = states.hidden_states[layer + 1][0][position[here]]
                torch.testing.assert_close(x[torch.from_numpy(here)], expected, rtol=2e-3, atol=2e-3)


def test_blocks_above_the_site_do_not_run(tiny: ModelSection) -> None:
    lm, ran = model.load(model.pinned(tiny)), []
    handles = [block.register_forward_hook(lambda *a, n=n: ran.append(n)) for n, block in enumerate(lm.blocks)]
    residual.residuals(lm, torch.tensor([[5, 6, 7]]), (1,))
    for handle in handles:
        handle.remove()
    assert ran in ([0, 1], [0])  # the stop may come before or after a hook on the same block


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_groups_partition_and_share_what_they_say(rows: list[list[int]]) -> None:
    sequences = Sequences.of((ids, 1, len(ids)) for ids in rows)
    groups = harvest.group_by_prefix(sequences)
    assert sorted(i for g in groups for i in g.members) == list(range(len(rows)))
    for group in groups:
        first = sequences[group.members[0]][: group.prefix].tolist()
        for i in group.members:
            assert sequences[i][: group.prefix].tolist() == first
            assert len(sequences[i]) > group.prefix
        assert sorted(i for b in harvest.batches(group, sequences) for i in b) == sorted(group.members)


def test_grouping_never_costs_more_than_running_alone() -> None:
    sequences = sequences_with_prefixes(2, count=90)
    groups = harvest.group_by_prefix(sequences)
    cost = sum(g.prefix + sum(len(sequences[i]) - g.prefix for i in g.members) for g in groups)
    assert cost < 0.5 * len(sequences.ids)
    assert {g.prefix for g in groups} >= {30, 90}


def test_batches_respect_the_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvest, "BATCH_TOKENS", 50)
    monkeypatch.setattr(harvest, "CACHED_TOKENS", 300)
    sequences = sequences_with_prefixes(3)
    for group in harvest.group_by_prefix(sequences):
        for batch in harvest.batches(group, sequences):
            width = max(len(sequences[i]) for i in batch)
            assert len(batch) == 1 or (len(batch) * (width - group.prefix) <= 50 and len(batch) * width <= 300)


def test_memory_is_flat_in_the_number_of_tokens(
    tiny: ModelSection, empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the next sequence is read, fewer tokens than a shard has are not on disk yet, however many there are."""
    monkeypatch.setattr(harvest, "SHARD_TOKENS", 64)
    held, counts, save, real = 0, list[int](), harvest.save_file, harvest._part

    def spy(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal held
        save(tensors, path)
        held -= len(tensors["token"])

    def part(rows: Sequences, index: int, *rest: object) -> dict[str, torch.Tensor]:
        nonlocal held
        counts.append(held)
        found = real(rows, index, *rest)
        held += len(found["token"])
        return found

    monkeypatch.setattr(harvest, "save_file", spy)
    monkeypatch.setattr(harvest, "_part", part)
    path = harvest.harvest(made(4), model.pinned(tiny), (0,)).path
    assert len(counts) == len(sequences_with_prefixes(4)) and max(counts) < 64 and held == 0
    assert len(list(path.glob("shard_*"))) > 3
    assert len(Activations([(path, 1.0)], 0, sinks=True)) == sequences_with_prefixes(4).kept


def test_residual_too_large_for_float16_is_an_error() -> None:
    with pytest.raises(ModelError, match="exceeds float16"):
        harvest._part(Sequences.of([([1, 2], 1, 2)]), 0, {0: torch.full((1, 4), 1e6)})


TEXTS = (  # of several lengths, some of one token
    "list",
    "How do birds fly in winter?",
    "Write a short poem about the sea, the wind and 1234 boats. " * 3,
    "x",
)


@store.cached
def prompted(out: Path, tiny: ModelSection, texts: tuple[str, ...] = TEXTS) -> None:
    """Labelled prompts in the model's template."""
    lines = [
        examples.Example(text=t, label=i % 2, split="train", slice="s", transform="plain", base=str(i), group=i)
        for i, t in enumerate(texts)
    ]
    (out / "examples.jsonl").write_text("\n".join(line.model_dump_json() for line in lines))


def test_prompts_are_read_at_every_place(tiny: ModelSection, empty_store: store.Store) -> None:
    """Positions after the user's text and poolings at every layer, and all tokens at the site, against plain passes."""
    pair, lm = prompted(tiny), model.load(model.pinned(tiny))
    tokens = sequences.labelled(pair, model.pinned(tiny), "all")
    harvested = harvest.harvest_prompts(tokens, model.pinned(tiny), (1,), 2)
    rows = sequences.read(tokens)
    chats = [spans.chat(lm.tokenizer, e.text) for e in examples.read(pair)]
    source = activations.read(harvested, 2, sinks=True)
    sequence, position = source.column("sequence"), source.column("position")
    for index, chat in enumerate(chats):
        with torch.inference_mode():
            states = lm.model(torch.tensor([chat.ids]), output_hidden_states=True).hidden_states
        for layer in (1, 2):
            x = states[layer + 1][0]
            close = {"rtol": 2e-3, "atol": 2e-3}
            for place, at in enumerate(chat.tail):
                torch.testing.assert_close(activations.summary(harvested, layer, place)[index], x[at], **close)
            user, every = x[chat.user.start : chat.user.stop], x[1:]
            for name, part in (("user", user), ("all", every)):
                torch.testing.assert_close(
                    activations.summary(harvested, layer, f"mean {name}")[index], part.mean(0), **close
                )
                torch.testing.assert_close(
                    activations.summary(harvested, layer, f"max {name}")[index], part.amax(0), **close
                )
        here = np.flatnonzero(sequence == index)
        assert position[here].tolist() == list(range(chat.user.start, len(chat.ids)))
        torch.testing.assert_close(source.gather(here), states[3][0][position[here]], rtol=2e-3, atol=2e-3)
    assert activations.summary_shape(harvested, 1) == (len(chats), len(chats[0].tail))
    assert len(rows) == len(chats)
    with pytest.raises(ValueError, match="no place 'median user'"):
        activations.summary(harvested, 1, "median user")
    with pytest.raises(ValueError, match="no activations of layer 3"):
        activations.summary(harvested, 3, 0)


@pytest.fixture(params=["", "<|im_start|>"])
def bare(request: pytest.FixtureRequest, tiny: ModelSection, tmp_path: Path) -> ModelSection:
    """The tiny model with a template that has nothing, or one token, before the user's text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.name)
    tokenizer.chat_template = (
        "{% for m in messages %}START{{ m['content'] }}.\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    ).replace("START", request.param if "<|im_start|>" in tokenizer.get_vocab() else request.param and "<bos>")
    folder = tmp_path / "bare"
    shutil.copytree(tiny.name, folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(name=str(folder))


def test_templates_with_hardly_anything_before_the_users_text(bare: ModelSection, empty_store: store.Store) -> None:
    """The first token of all is never kept, be it the template's or the user's; the rest is where it should be."""
    given, pair = model.pinned(bare), prompted(bare, ("How do birds fly in winter?", "Write a poem about the sea."))
    lm = model.load(given)
    before = spans.chat(lm.tokenizer, "x").user.start
    assert before == (1 if lm.tokenizer.chat_template.startswith("{% for m in messages %}<") else 0)
    harvested = harvest.harvest_prompts(sequences.labelled(pair, given, "all"), given, (1,), 2)
    turns = sequences.read(sequences.labelled(pair, given, "user"))
    assert turns.keep_start.tolist() == [1, 1]
    source = activations.read(harvested, 2, sinks=True)
    for index, example in enumerate(examples.read(pair)):
        chat = spans.chat(lm.tokenizer, example.text)
        with torch.inference_mode():
            x = lm.model(torch.tensor([chat.ids]), output_hidden_states=True).hidden_states[2][0]
        for place, at in enumerate(chat.tail):
            torch.testing.assert_close(activations.summary(harvested, 1, place)[index], x[at], rtol=2e-3, atol=2e-3)
        user = x[max(1, chat.user.start) : chat.user.stop]
        pooled = activations.summary(harvested, 1, "mean user")[index]
        torch.testing.assert_close(pooled, user.mean(0), rtol=2e-3, atol=2e-3)
        here = source.column("sequence") == index
        assert source.column("position")[here].tolist() == list(range(1, len(chat.ids)))
        assert source.column("token")[here].tolist() == chat.ids[1:]
    if before == 0:
        with pytest.raises(ValueError, match=r"prompt 1 \(1\) is the first token alone"):
            sequences.labelled(prompted(bare, ("How do birds fly?", "x")), given, "all").path


def test_pooling_leaves_sinks_out() -> None:
    x = torch.ones(8, 4)
    x[3] = 1e4
    pooled = harvest._pool(x, 2, 2)
    assert torch.equal(pooled, torch.ones(4, 4))


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 400,
    "max_position_embeddings": 256,
}
MODELS = {
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=400, n_positions=256),
    "falcon": transformers.FalconConfig(**SMALL, num_kv_heads=4, new_decoder_architecture=True),
    "bloom": transformers.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=400),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL, intermediate_size=64),
    "opt": transformers.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32),
    "mpt": transformers.MptConfig(d_model=32, n_layers=3, n_heads=4, vocab_size=400, max_seq_len=256),
    "lfm2": transformers.Lfm2Config(
        **SMALL, intermediate_size=64, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]
    ),
    "mamba": transformers.MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=400, state_size=4),
    "qwen2": transformers.Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_architectures_with_other_blocks_and_caches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones and hybrids, against plain passes: blocks are found, and a prefix is shared only where its cache can be."""
    monkeypatch.setattr(harvest, "BATCH_TOKENS", 60)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()
    lm = model.LM(network, type("Tokenizer", (), {"pad_token_id": None, "eos_token_id": 2})())
    rows, groups = sequences_with_prefixes(1), None
    shares = residual.shared_cache(lm) is not None
    assert shares == (name not in ("lfm2", "mamba"))
    groups = harvest.group_by_prefix(rows) if shares else [harvest.Group(0, list(range(len(rows))))]
    for group in groups:
        for index, kept in harvest.run_group(lm, group, rows, (1,)):
            ids = torch.from_numpy(rows[index].astype(np.int64))[None]
            with torch.inference_mode():
                expected = network(input_ids=ids, output_hidden_states=True).hidden_states
            at = 1 if name == "mamba" else 2  # which does not list what goes into its first block
            here = slice(int(rows.keep_start[index]), int(rows.keep_stop[index]))
            torch.testing.assert_close(kept[1], expected[at][0][here], rtol=2e-3, atol=2e-3)


def test_a_text_longer_than_the_model_reads_is_refused(tiny: ModelSection, empty_store: store.Store) -> None:
    with pytest.raises(
        ModelError, match=r"a text has 600 tokens and the model reads 512 at once: lower corpora\.context"
    ):
        harvest.harvest(long_text(), model.pinned(tiny), (1,)).path


@store.cached
def long_text(out: Path) -> None:
    Sequences.of([([5] * 600, 1, 600)]).save(out / "sequences.safetensors")
