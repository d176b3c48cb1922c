"""Other people's SAE trainers and activation harvesters, timed on our batches: SAELens, dictionary_learning,
TransformerLens, plain transformers.

Run as a script by the peers' own interpreter, ``python -P peers.py {train,harvest} JOB.json``; so it imports nothing of
lib. It writes its measurements to the job's ``out``. Peers keep their own defaults but for what the job sets; CPU,
float32. Weights go in and out under our names; inside, peers keep the memory layout they chose.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
Job = dict[str, Any]

PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
JUMPRELU = PLAIN | {"theta": "threshold"}
LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}  # these hold the transpose
GATED = LINEAR | {"b_enc": "gate_bias", "b_dec": "decoder_bias", "r_mag": "r_mag", "b_mag": "mag_bias"}
# Of each variant: our names of parameters and theirs; their arguments and the job's names for them.
SAELENS = {
    "jumprelu": (JUMPRELU, {"jumprelu_bandwidth": "bandwidth", "l0_coefficient": "coefficient"}),
    "gated": (PLAIN | {"b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}, {"l1_coefficient": "coefficient"}),
    "topk": (PLAIN, {"k": "k"}),
}
DICTIONARIES = {
    "jumprelu": (JUMPRELU, {"bandwidth": "bandwidth", "sparsity_penalty": "coefficient", "target_l0": "k"}),
    "gated": (GATED, {"l1_penalty": "coefficient"}),
    "topk": (LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec"}, {"k": "k"}),
}
PACKAGES = {"saelens": "sae-lens", "transformer_bridge": "transformer-lens"}  # where the peer is not the package


def memory(field: str) -> int:
    """Bytes of ``VmHWM`` (peak resident set) or ``VmRSS`` (resident now); elsewhere than on Linux always the peak."""
    status = Path("/proc/self/status")  # getrusage would start at what the parent process held
    if status.exists():
        return int(re.findall(rf"{field}:\s+(\d+)", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def uncentred(weights: Weights, sign: int) -> Weights:
    """Biases for an encoder of x - b_dec that computes what ours does on x (``sign`` 1), or back again (-1)."""
    shift = sign * (weights["b_dec"] @ weights["W_enc"])
    moved = {"b_enc": weights["b_enc"] + shift}
    if "b_mag" in weights:
        moved["b_mag"] = weights["b_mag"] + weights["r_mag"].exp() * shift
    return {**weights, **moved}


def views(module: torch.nn.Module, names: dict[str, str]) -> Weights:
    """All of a module's parameters, under our names and in our shapes, as views."""
    found = {name: value.detach() for name, value in module.named_parameters()}
    if found.keys() != set(names.values()):
        raise RuntimeError(f"expected parameters {sorted(names.values())}, found {sorted(found)}")
    return {ours: found[name].T if name.endswith(".weight") else found[name] for ours, name in names.items()}


def without_leak(kind: Any) -> Any:
    """SAELens' gated SAE, its gate's own reconstruction through a detached decoder as in the paper (eq. 8)."""

    class Mended(kind):
        def calculate_aux_loss(self, **given: Any) -> dict[str, torch.Tensor]:
            found = super().calculate_aux_loss(**given)
            x = given["step_input"].sae_in
            gate = torch.relu(x @ self.W_enc + self.b_gate)
            error = gate @ self.W_dec.detach() + self.b_dec.detach() - x
            return found | {"auxiliary_reconstruction_loss": error.pow(2).sum(dim=-1).mean()}

    return Mended


def saelens(job: Job, settings: Job, d: int, m: int) -> tuple[Any, Callable[[int, torch.Tensor], Any]]:
    """SAE and step of SAELens: its ``SAETrainer``, driven through the step that its ``fit`` calls."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    kind, config = get_sae_training_class(job["variant"])
    if job.get("mended"):
        kind = without_leak(kind)
    sae: Any = kind(config(d_in=d, d_sae=m, apply_b_dec_to_input=False, **settings))
    trainer_config = SAETrainerConfig(
        total_training_samples=job["steps"] * job["batch"],
        train_batch_size_samples=job["batch"],
        lr=job["learning_rate"],
        lr_end=job["learning_rate"] / 10,  # must be set; a constant schedule does not use it
        dead_feature_window=max(1000, job["steps"]),  # at least the default, and no latent counts as dead
    )
    trainer = SAETrainer(trainer_config, sae, data_provider=iter(()))

    def step(_: int, batch: torch.Tensor) -> Any:
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        return output

    return sae, step


def dictionary_learning(job: Job, settings: Job, d: int, m: int) -> tuple[Any, Callable[[int, torch.Tensor], Any]]:
    """Dictionary and step of dictionary_learning: ``update`` of its trainers."""
    from dictionary_learning.trainers import GatedSAETrainer, JumpReluTrainer, TopKTrainer

    kind = {"jumprelu": JumpReluTrainer, "gated": GatedSAETrainer, "topk": TopKTrainer}[job["variant"]]
    settings |= {"steps": job["steps"] + 1, "lr": job["learning_rate"], "warmup_steps": 0}
    if job["variant"] != "topk":
        settings["sparsity_warmup_steps"] = 0
    trainer: Any = kind(activation_dim=d, dict_size=m, layer=0, lm_name="", device="cpu", **settings)
    return trainer.ae, lambda i, batch: trainer.update(i + 1, batch)  # step 0 of TopK would overwrite b_dec


def train(job: Job) -> Job:
    """Time a peer's training steps one by one and keep the weights it ends with."""
    x, start = load_file(job["x"])["x"], load_file(job["start"])
    build, table = {"saelens": (saelens, SAELENS), "dictionary_learning": (dictionary_learning, DICTIONARIES)}[
        job["peer"].split(",")[0]
    ]
    names, settings = table[job["variant"]]
    module, step = build(job, {theirs: job[ours] for theirs, ours in settings.items()}, *start["W_enc"].shape)
    centred = names["W_enc"] == "encoder.weight"  # those that encode x - b_dec
    for name, view in views(module, names).items():
        view.copy_((uncentred(start, 1) if centred else start)[name])
    resident, seconds = memory("VmRSS"), []
    for i in range(job["steps"]):
        batch = x[torch.arange(i * job["batch"], (i + 1) * job["batch"]) % len(x)]
        begun = time.perf_counter()
        output = step(i, batch)  # noqa: F841 - held until the next step is done, as SAELens's loop does
        seconds.append(time.perf_counter() - begun)
    peak = memory("VmHWM")
    if job["peer"].startswith("saelens"):
        module.fold_W_dec_norm()  # it leaves decoder norms free; this makes them 1 and changes no output
    end = views(module, names)
    end = uncentred(end, -1) if centred else end
    save_file({name: value.contiguous() for name, value in end.items()}, job["weights"])
    return {"seconds": seconds, "peak_bytes": peak, "start_bytes": resident}


def transformer_lens(job: Job) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Residual by TransformerLens, run as SAELens runs it: one hook, stopping after the layer."""
    name = f"blocks.{job['layer']}.hook_resid_post"
    model: Any
    if job["peer"] == "transformer_bridge":  # the successor of HookedTransformer, over the transformers model
        from transformer_lens.model_bridge import TransformerBridge

        model = TransformerBridge.boot_transformers(job["model"], device="cpu", dtype=torch.float32)
    else:  # the steps of from_pretrained_no_processing, which takes only names that it knows
        from transformer_lens import HookedTransformer
        from transformer_lens import loading_from_pretrained as loading

        config = loading.get_pretrained_model_config(job["model"], device="cpu", dtype=torch.float32)
        state = loading.get_pretrained_state_dict(job["model"], config, dtype=torch.float32)
        model = HookedTransformer(config, move_to_device=False)
        off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
        model.load_and_process_state_dict(state, **off)

    def residual(ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        # Right-padded and causal: the mask would only change the padding, and it leaves it out too.
        return model.run_with_cache(ids, names_filter=[name], stop_at_layer=job["layer"] + 1)[1][name]

    return residual


def transformers(job: Job) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Residual by transformers: all of the model, all hidden states."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["layer"] + 1 >= model.config.num_hidden_layers:
        raise ValueError("transformers gives the last hidden state after the final norm only")

    def residual(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[job["layer"] + 1]

    return residual


@torch.no_grad()
def harvest(job: Job) -> Job:
    """Time residuals of right-padded batches, all real tokens' rows taken out, for ``limit_s`` or to the end.

    Batches are of sequences as they come, or, with ``by_length``, of neighbours in length, in a random order.
    """
    tokens = load_file(job["tokens"])
    ids, offsets = tokens["ids"], tokens["offsets"].tolist()
    sequences = [ids[a:b] for a, b in pairwise(offsets)]
    residual = (transformers if job["peer"].split(",")[0] == "transformers" else transformer_lens)(job)
    resident, seconds, count = memory("VmRSS"), 0.0, 0
    if job.get("by_length"):
        sequences.sort(key=len)
    batches = [sequences[i : i + job["batch"]] for i in range(0, len(sequences), job["batch"])]
    if job.get("by_length"):
        random.Random(0).shuffle(batches)
    for i, batch in enumerate((batches[0], *batches)):  # the first batch twice: to warm up, then timed
        padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(sequence) for sequence in batch])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        begun = time.perf_counter()
        rows = residual(padded, mask)[mask]
        spent = time.perf_counter() - begun
        if i == 0:
            if job.get("keep"):
                save_file({"x": rows[: int(lengths[:4].sum())].contiguous()}, job["keep"])
            continue
        seconds, count = seconds + spent, count + len(rows)
        if seconds >= job["limit_s"]:
            break
    return {"tokens": count, "seconds": seconds, "peak_bytes": memory("VmHWM"), "start_bytes": resident}


if __name__ == "__main__":
    command, path = sys.argv[1:]
    task = json.loads(Path(path).read_text())
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        measured = {"train": train, "harvest": harvest}[command](task)
    peer = task["peer"].split(",")[0]
    release = importlib.metadata.version(PACKAGES.get(peer, peer))
    Path(task["out"]).write_text(json.dumps({**measured, "version": release}))
