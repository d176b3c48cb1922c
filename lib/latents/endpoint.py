"""An explainer behind any OpenAI-compatible endpoint (vLLM, llama.cpp, ``transformers serve``, a hosted one), with the post's protocol: a
model explains, and is asked for levels by the explanation alone. Prompts are plain files beside this one; answers are kept."""

import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import openai

from lib import config, store
from lib.latents.autointerp import LEVELS, Contexts, Explainer
from lib.latents.cards import token_texts
from lib.lm import model
from lib.lm.model import Pinned

EXPLAIN, JUDGE = (Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8") for name in ("explain", "judge"))
LEVEL = re.compile(r"^\W*(\d+)\W+(\d+)\W*$", re.MULTILINE)  # "3: 7"
REFUSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError)


class EndpointError(config.Expected, RuntimeError):
    """An endpoint that cannot be used as it was asked: says why, and what to set."""


@functools.cache
def _client(url: str, timeout: float, retries: int) -> openai.OpenAI:
    key = os.environ.get("OPENAI_API_KEY") or "none"  # which servers at home take
    return openai.OpenAI(base_url=url or None, api_key=key, timeout=timeout, max_retries=retries)


@dataclass(frozen=True)
class Endpoint(Explainer):
    """The model ``name`` at ``url`` ("": OpenAI's own), its key in $OPENAI_API_KEY. Time-outs, refusals for haste (429) and errors of the
    server are tried again ``retries`` times, ever later; what fails then, or cannot be read, is no answer. Each answer is kept
    under its question in the cache, so that a run that is repeated asks for nothing. ``lm``'s tokenizer makes the texts."""

    name: str
    url: str
    lm: Pinned
    at_once: int = 8
    timeout: float = 120.0
    retries: int = 5
    prompts: tuple[str, str] = (EXPLAIN, JUDGE)

    def _asked(self, prompt: str) -> str:
        """The answer to a prompt, "" where there was none; EndpointError if the endpoint takes no such questions at all."""
        asked = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        kept = config.cache_dir() / "answers" / f"{store.digest([self.url, asked])}.json"
        if kept.is_file():
            return str(json.loads(kept.read_text(encoding="utf-8"))["answer"])
        try:
            said: Any = _client(self.url, self.timeout, self.retries).chat.completions.create(**asked)  # type: ignore[call-overload]
            answer = str(said.choices[0].message.content or "").strip()
        except REFUSED as error:
            where = self.url or "api.openai.com"
            remedy = "look at OPENAI_BASE_URL, OPENAI_API_KEY and autointerp.model"
            raise EndpointError(f"{where} refuses {self.name}: {error.message[:200]}: {remedy}") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
            return ""
        if answer:
            store.write_atomic(kept, json.dumps({"asked": asked, "answer": answer}))
        return answer

    def explain(self, seen: Contexts) -> str:
        """A sentence; "" where there was no answer."""
        tokenizer, top, lines = model.tokenizer(self.lm), max(float(seen.peaks.max()), 1e-9), []
        for number, (tokens, values) in enumerate(zip(seen.tokens, seen.values, strict=True), 1):
            levels = np.round(LEVELS * values[tokens >= 0] / top).astype(int).tolist()
            texts = zip(token_texts(tokenizer, tokens[tokens >= 0]), levels, strict=True)
            lines.append(f"{number}: " + "".join(f"<<{text}>>({level})" if level else text for text, level in texts))
        return self._asked(Template(self.prompts[0]).safe_substitute(contexts="\n".join(lines), most=LEVELS))

    def predict(self, explanation: str, shown: Contexts) -> np.ndarray:
        tokenizer, found = model.tokenizer(self.lm), np.full(len(shown.tokens), np.nan)
        if not explanation:
            return found
        texts = ("".join(token_texts(tokenizer, tokens[tokens >= 0])) for tokens in shown.tokens)
        lines = "\n".join(f"{number}: {text}" for number, text in enumerate(texts, 1))
        values = {"contexts": lines, "explanation": explanation, "most": LEVELS, "count": len(found)}
        for number, level in LEVEL.findall(self._asked(Template(self.prompts[1]).safe_substitute(values))):
            if 1 <= int(number) <= len(found) and int(level) <= LEVELS and np.isnan(found[int(number) - 1]):
                found[int(number) - 1] = int(level)
        return found
