"""Run by the peers' interpreter: what SAELens makes of exported folders. ``python saelens_oracle.py FOLDER``.

The folder holds ``x.safetensors`` (residuals "x", unit inputs "unit"), one SAELens folder per SAE, and ``jobs.json``
with each one's training settings; SAELens' latents, reconstructions, losses and gradients are written beside them.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.torch import load_file, save_file

KINDS = {
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
}


def main(folder: Path) -> None:
    inputs = load_file(folder / "x.safetensors")
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        out = {}
        loaded = SAE.load_from_disk(folder / name)
        with torch.no_grad():
            out["latents"] = loaded.encode(inputs["x"])
            out["reconstruction"] = loaded.decode(out["latents"])
        loaded.save_model(folder / f"{name}_back")
        if "settings" in job:
            kind, config = KINDS[job["variant"]]
            shape = {"d_in": loaded.cfg.d_in, "d_sae": loaded.cfg.d_sae}
            sae = kind(config(**shape, apply_b_dec_to_input=False, device="cpu", **job["settings"]))
            sae.load_state_dict(load_file(folder / f"{name}_unit.safetensors"))
            dead = torch.tensor(job["dead"]) if "dead" in job else None
            step = TrainStepInput(inputs["unit"], job["coefficients"], dead, 0, False)
            result = sae.training_forward_pass(step)
            result.loss.backward()
            out |= {f"loss.{key}": value.detach().reshape(1) for key, value in result.losses.items()}
            out |= {f"grad.{key}": p.grad for key, p in sae.named_parameters() if p.grad is not None}
        save_file({key: value.contiguous() for key, value in out.items()}, folder / f"{name}_out.safetensors")


def batchtopk(folder: Path) -> None:
    """BatchTopK as SAELens keeps it while it is trained, with decoder rows of other norms, and what it makes of that in use."""
    x = load_file(folder / "x.safetensors")["x"]
    for by_norm in (False, True):
        torch.manual_seed(0)
        shape = {"d_in": x.shape[1], "d_sae": 48, "k": 4.0, "rescale_acts_by_decoder_norm": by_norm, "device": "cpu"}
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape))
        with torch.no_grad():
            sae.W_dec *= torch.linspace(2, 20, 48)[:, None]
            sae.b_enc.normal_()
            sae.b_dec.normal_()
            sae.topk_threshold.fill_(0.5)
        sae.save_model(folder / f"batchtopk_{by_norm}_training")
        sae.save_inference_model(folder / f"batchtopk_{by_norm}_use")
        used = SAE.load_from_disk(folder / f"batchtopk_{by_norm}_use")
        with torch.no_grad():
            out = {
                "latents": used.encode(x),
                "reconstruction": used.decode(used.encode(x)),
                "norm": used.W_dec.norm(dim=1),
            }
        save_file(
            {key: value.contiguous() for key, value in out.items()}, folder / f"batchtopk_{by_norm}_out.safetensors"
        )


main(Path(sys.argv[1]))
batchtopk(Path(sys.argv[1]))
