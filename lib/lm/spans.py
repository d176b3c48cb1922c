"""Chat prompts as tokens: the ids that the model's own template gives, and which of them are the user's text.

A rendering is tokenised once, as the model's users do it, for many a tokenizer treats a text's beginning in a way of its own;
the user's text is found by its place among the characters. Only where a text holds a special token's string it is tokenised
apart from the template around it: ``<|im_start|>`` inside a prompt is nine characters, never a special token.
"""

import functools
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2

from lib.lm.model import ModelError

_STAND_IN = "zqstandinqz"
_DAY = datetime(2025, 3, 26)  # what a template that asks for the date is told: else tokens change from day to day
_CLOCK = "".join(f"|replace('%{part}', '{_DAY.strftime(f'%{part}')}')" for part in "aAbBdHIjmMpSyY")
_DATED = f"{{% macro strftime_now(format) %}}{{{{ format{_CLOCK} }}}}{{% endmacro %}}\n"

Message = dict[str, str]  # role and content
Token = tuple[int, int, int]  # id, and the characters that it stands for: first, and after the last


@dataclass(frozen=True)
class Chat:
    """A tokenised single-turn prompt: before the user's text stand system turn and user header."""

    ids: list[int]
    user: range  # the tokens that hold characters of the user's text
    cut: bool = False  # the text was longer

    @property
    def tail(self) -> range:
        """The tokens after the user's text: what closes the user's turn and opens the assistant's."""
        return range(self.user.stop, len(self.ids))


def _render(tokenizer: Any, messages: Sequence[Message], generate: bool) -> str:
    try:
        how = {"chat_template": _DATED + tokenizer.get_chat_template(), "tokenize": False}
        return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, **how)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the model's chat template fails on a {len(messages)}-turn conversation: {error}") from None


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` as plain text: nothing in it becomes a special token, none is added."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _tokenised(tokenizer: Any, frames: Sequence[str], contents: Sequence[str] = ()) -> list[Token]:
    """The tokens of a rendering: the template's ``frames`` and between them the ``contents``."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pieces = [*itertools.chain(*itertools.zip_longest(frames, contents, fillvalue=""))]
    hostile = any(token in content for content in contents for token in special)
    found, start = list[Token](), 0
    for number, piece in enumerate(pieces if hostile else ["".join(pieces)]):
        how = {"add_special_tokens": False, "split_special_tokens": number % 2 == 1}
        given = tokenizer(piece, return_offsets_mapping=True, **how)
        places = zip(given["input_ids"], given["offset_mapping"], strict=True)
        found += [(token, start + first, start + last) for token, (first, last) in places]
        start += len(piece)
    return found


@functools.lru_cache(maxsize=8)
def _template(tokenizer: Any) -> tuple[str, str]:
    """The template's text before the user's and after it."""
    message = [{"role": "user", "content": _STAND_IN}]
    closed, opened = _render(tokenizer, message, False), _render(tokenizer, message, True)
    if closed.count(_STAND_IN) != 1 or not opened.startswith(closed):
        raise ModelError(
            "its chat template does not keep the user's text in one piece, the assistant's header after it"
        )
    before, _, after = opened.partition(_STAND_IN)
    return before, after


def chat(tokenizer: Any, text: str, limit: int = sys.maxsize, most: int = sys.maxsize) -> Chat:
    """A prompt whose user turn is ``text``, of it at most ``limit`` tokens and at most ``most`` in all, ready for the assistant to
    answer. A text that is too long is cut between characters, so that its ids too are the template's. ModelError if the template
    fails, does not keep a text in one piece or leaves no room for it; ValueError if a text has no tokens, or it changes one."""
    (before, after), text, cut = _template(tokenizer), text.strip(), False
    while True:
        if _render(tokenizer, [{"role": "user", "content": text}], True) != before + text + after:
            raise ValueError("the chat template changes this text")
        tokens = _tokenised(tokenizer, (before, after), (text,))
        end = len(before) + len(text)
        user = [number for number, (_, first, last) in enumerate(tokens) if last > len(before) and first < end]
        if not user:
            raise ValueError("an empty prompt has no tokens")
        if (room := min(limit, most - len(tokens) + len(user))) >= len(user):
            return Chat([token for token, _, _ in tokens], range(user[0], user[-1] + 1), cut)
        if room < 1:
            raise ModelError(f"its chat template leaves no room for a prompt in {most} tokens")
        text, cut = text[: tokens[user[room]][1] - len(before)].strip(), True


def opening(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` at the beginning of an answer, as they follow a template's or, if its end would change, apart."""
    before, after = _template(tokenizer)
    asked, both = ([t for t, _, _ in _tokenised(tokenizer, (before + "x" + after + said,))] for said in ("", text))
    return both[len(asked) :] if both[: len(asked)] == asked else plain_ids(tokenizer, text)
