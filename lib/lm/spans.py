"""Chat prompts as tokens, with the parts of the template found by offset, for any template.

The template is rendered once with a stand-in for the user's text; what stands before and after it is the template's
own. The user's text is tokenised apart from the template, as plain text: ``<|im_start|>`` inside a prompt is nine
characters, never a special token.
"""

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
    """A tokenised single-turn prompt: before the user's text stand system turn and user header."""

    ids: list[int]
    user: range  # the tokens of the user's text

    @property
    def tail(self) -> range:
        """The tokens after the user's text: what closes the user's turn and opens the assistant's."""
        return range(self.user.stop, len(self.ids))


def _render(tokenizer: Any, messages: list[dict[str, str]], generate: bool) -> str:
    how = {"chat_template": _DATED + tokenizer.get_chat_template(), "tokenize": False}
    return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, **how)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` as plain text: nothing in it becomes a special token, none is added."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _template_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.lru_cache(maxsize=8)
def _template(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of the template before the user's text and after it."""
    message = [{"role": "user", "content": _STAND_IN}]
    closed, opened = _render(tokenizer, message, False), _render(tokenizer, message, True)
    if closed.count(_STAND_IN) != 1 or not opened.startswith(closed):
        raise ValueError("this chat template does not keep the user's text in one piece, the assistant header after it")
    before, end = closed.split(_STAND_IN)
    header = opened.removeprefix(closed)
    return _template_ids(tokenizer, before), _template_ids(tokenizer, end) + _template_ids(tokenizer, header)


def chat(tokenizer: Any, text: str, limit: int | None = None) -> Chat:
    """A prompt whose user turn is ``text``, of it at most ``limit`` tokens, ready for the assistant to answer.

    Raises:
        ValueError: the text has no tokens, or the template does not keep it in one piece or alters it for the assistant.
    """
    before, after = _template(tokenizer)
    user = plain_ids(tokenizer, text.strip())[:limit]
    if not user:
        raise ValueError("an empty prompt has no tokens")
    return Chat([*before, *user, *after], range(len(before), len(before) + len(user)))


def transcript(tokenizer: Any, turns: list[dict[str, str]], limit: int) -> list[int]:
    """Tokens of a conversation in the template, at most ``limit``; ValueError if it drops or rewrites a turn.

    The contents are plain text; the template's text around them is found by rendering the conversation with stand-ins.
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
