"""Shared fixtures: a store in a temporary folder, tiny chat models with tokenizers of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import reach
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lib import config, store
from lib.config import ModelSection

os.environ.setdefault("TQDM_DISABLE", "1")

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEXT = [
    "How do birds fly in winter? They flap their wings and follow the coast to the south.",
    "Write a short poem about the sea, the wind and 1234 boats.",
    "user assistant system model You help. Please list three colours that rhyme with nothing.",
]


@pytest.fixture(autouse=True)
def _steps_stay_within_their_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step a test computes is traced: see tests/reach.py."""
    reach.guard(monkeypatch)


@pytest.fixture
def empty_store(tmp_path: Path) -> store.Store:
    """An empty store in use, with a committed-results folder beside it."""
    return store.use(store.Store("report", tmp_path / "cache", tmp_path / "results", tmp_path / "committed"))


def _tokenizer(template: str, specials: list[str], bos: str | None) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=specials[1], pad_token=specials[1]
    )
    if bos:
        fast.bos_token = bos
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session", params=["llama", "gemma2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSection:
    """A random 4-block chat model in a folder, of two architectures with two kinds of template."""
    common = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(0)
    if request.param == "llama":
        tokenizer = _tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], None)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, eos_token_id=1, pad_token_id=1))
    else:
        tokenizer = _tokenizer(GEMMA, ["<bos>", "<end_of_turn>", "<start_of_turn>"], "<bos>")
        settings = transformers.Gemma2Config(**common, head_dim=8, sliding_window=16, eos_token_id=1, pad_token_id=1)
        model = transformers.Gemma2ForCausalLM(settings)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(name=str(folder))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return config.ROOT
