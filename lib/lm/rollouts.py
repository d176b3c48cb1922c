"""On-policy text: the model answers prompts, seeded, batched, with its key-value cache."""

from __future__ import annotations

import numpy as np
import torch
from tqdm.auto import tqdm

from lib.lm.model import LM


def rollouts(
    lm: LM,
    prompts: list[list[int]],
    length: int,
    budget: int,
    seed: int,
    uncounted: int = 0,
    batch: int = 64,
    top_p: float = 0.9,
    temperature: float = 0.7,
) -> list[list[int]]:
    """Prompt and sampled answer for as many of ``prompts`` (token ids) as ``budget`` tokens pay for.

    ``length`` is the most new tokens per answer; ``budget`` counts prompt and answer tokens but for the first
    ``uncounted`` of each, which the template makes the same. Answers end after their end token. Prompts are taken in the
    order given, 8 batches at a time, batches of like length, and those in a seeded order, so that the end of the budget
    cuts no kind of prompt more than another. Sampling at temperature 1 rambles and greedy decoding loops with small models,
    hence nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
    """
    done: list[list[int]] = []
    spent = 0
    rng = np.random.default_rng(seed)
    with tqdm(total=budget, unit="tok", desc="rollouts", disable=None) as bar:
        for start in range(0, len(prompts), 8 * batch):
            window = sorted(prompts[start : start + 8 * batch], key=len)
            for at in rng.permutation(range(0, len(window), batch)).tolist():
                if spent >= budget:
                    return done
                for ids in _answer(lm, window[at : at + batch], length, seed + start + at, top_p, temperature):
                    done.append(ids)
                    spent += len(ids) - uncounted
                    bar.update(len(ids) - uncounted)
    return done


def _answer(
    lm: LM, chunk: list[list[int]], length: int, seed: int, top_p: float, temperature: float
) -> list[list[int]]:
    widest = max(map(len, chunk))
    ids = torch.tensor([[lm.pad] * (widest - len(p)) + p for p in chunk], device=lm.device)  # left-padded
    mask = torch.tensor([[0] * (widest - len(p)) + [1] * len(p) for p in chunk], device=lm.device)
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=True,
            top_p=top_p,
            top_k=0,
            temperature=temperature,
            pad_token_id=lm.pad,
        )
    stops = lm.model.generation_config.eos_token_id
    stops = set(stops if isinstance(stops, list) else [stops]) | {lm.tokenizer.eos_token_id}
    answers = []
    for prompt, row in zip(chunk, out[:, widest:].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        answers.append(prompt + row[:end])
    return answers
