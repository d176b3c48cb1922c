"""Chat prompts as tokens, with the parts of the template found by offset, for any template.

The template is rendered once with a stand-in for the user's text; what stands before and after it is the template's
own. The user's text is tokenised apart from the template, as plain text: ``<|im_start|>`` inside a prompt is nine
characters, never a special token.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_STAND_IN = "zqstandinqz"
_DAY = datetime(2025, 3, 26)  # what a template that asks for the date is told: else tokens change from day to day
_CLOCK = "".join(f"|replace('%{part}', '{_DAY.strftime(f'%{part}')}')" for part in "aAbBdHIjmMpSyY")
_DATED = f"{{% macro strftime_now(format) %}}{{{{ format{_CLOCK} }}}}{{% endmacro %}}\n"


@dataclass(frozen=True)
class Chat:
    """A tokenised single-turn prompt. Spans are half-open token ranges that tile ``ids``.

    ``system``: everything before the user's text (system turn and user header); ``user``: the text itself;
    ``end``: what closes the user turn; ``header``: what opens the assistant's turn.
    """

    ids: list[int]
    system: range
    user: range
    end: range
    header: range

    @property
    def tail(self) -> range:
        """From the first token after the user's text to the last prompt token."""
        return range(self.end.start, self.header.stop)


def _render(tokenizer: Any, messages: list[dict[str, str]], generate: bool) -> str:
    template = _DATED + tokenizer.get_chat_template()
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generate
    )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` as plain text: nothing in it becomes a special token, none is added."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _template_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.lru_cache(maxsize=8)
def _template(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the template before the user's text, after it, and before the assistant's."""
    message = [{"role": "user", "content": _STAND_IN}]
    closed, opened = _render(tokenizer, message, False), _render(tokenizer, message, True)
    if closed.count(_STAND_IN) != 1 or not opened.startswith(closed):
        raise ValueError("this chat template does not keep the user's text in one piece, the assistant header after it")
    before, end = closed.split(_STAND_IN)
    header = opened.removeprefix(closed)
    return _template_ids(tokenizer, before), _template_ids(tokenizer, end), _template_ids(tokenizer, header)


def chat(tokenizer: Any, text: str, limit: int | None = None) -> Chat:
    """Tokens and spans of a prompt whose user turn is ``text``, ready for the assistant to answer.

    ``limit`` cuts the user's text to so many tokens.

    Raises:
        ValueError: the text has no tokens; or the template does not keep the user's text as one piece, or changes it when
            it adds the assistant header.
    """
    before, end, header = _template(tokenizer)
    user = plain_ids(tokenizer, text.strip())[:limit]
    if not user:
        raise ValueError("an empty prompt has no tokens")
    a, b = len(before), len(before) + len(user)
    c, d = b + len(end), b + len(end) + len(header)
    return Chat([*before, *user, *end, *header], range(a), range(a, b), range(b, c), range(c, d))


def transcript(tokenizer: Any, turns: list[dict[str, str]], limit: int) -> list[int]:
    """Tokens of a conversation in the template, at most ``limit``; the contents are plain text.

    The template text around a turn is found by rendering the conversation with stand-ins.

    Raises:
        ValueError: the template drops or rewrites a turn.
    """
    stand_ins = [f"{_STAND_IN}{number}q" for number in range(len(turns))]
    messages = [{"role": turn["role"], "content": name} for turn, name in zip(turns, stand_ins, strict=True)]
    rest, ids = _render(tokenizer, messages, False), []
    for turn, name in zip(turns, stand_ins, strict=True):
        frame, found, rest = rest.partition(name)
        if not found:
            raise ValueError("this chat template drops or rewrites a turn")
        ids += _template_ids(tokenizer, frame) + plain_ids(tokenizer, turn["content"])
        if len(ids) >= limit:
            return ids[:limit]
    return (ids + _template_ids(tokenizer, rest))[:limit]
