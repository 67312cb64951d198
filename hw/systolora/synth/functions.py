"""Functions of Liberty files, as Python expressions on words of bits."""

import re
from collections.abc import Sequence
from types import CodeType

from systolora.synth.tools import SynthError

__all__ = ["compiled", "variables"]

_TOKEN = re.compile(r"\s*([A-Za-z_]\w*(?:\[\d+\])?|[01]|[!'^&*|+()])")


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise SynthError(f"function {text!r}: not understood at {text[position:]!r}")
        found.append(match[1])
        position = match.end()
    return found


def variables(text: str) -> tuple[str, ...]:
    """The names in a function, each once, in their order."""
    return tuple(dict.fromkeys(t for t in _tokens(text) if t[0].isalpha() or t[0] == "_"))


class _Parser:
    """Not before exclusive or, then and (which may be left out), then or."""

    def __init__(self, text: str, names: Sequence[str]) -> None:
        self._text, self._names = text, {name: f"x[{n}]" for n, name in enumerate(names)}
        self._rest = _tokens(text)

    def _take(self) -> str:
        if not self._rest:
            raise SynthError(f"function {self._text!r}: ends too early")
        return self._rest.pop(0)

    def _next(self) -> str:
        return self._rest[0] if self._rest else ""

    def _atom(self) -> str:
        token = self._take()
        if token == "!":
            return f"(~{self._atom()})"
        if token == "(":
            value = self._or()
            if self._take() != ")":
                raise SynthError(f"function {self._text!r}: a bracket is not closed")
        elif token in "01":
            value = "ones" if token == "1" else "(~ones)"
        elif token in self._names:
            value = self._names[token]
        else:
            raise SynthError(f"function {self._text!r}: {token!r} is no pin")
        while self._next() == "'":
            self._take()
            value = f"(~{value})"
        return value

    def _xor(self) -> str:
        value = self._atom()
        while self._next() == "^":
            self._take()
            value = f"({value} ^ {self._atom()})"
        return value

    def _and(self) -> str:
        value = self._xor()
        while self._next() not in ("", "|", "+", ")"):
            if self._next() in "&*":
                self._take()
            value = f"({value} & {self._xor()})"
        return value

    def _or(self) -> str:
        value = self._and()
        while self._next() in ("|", "+"):
            self._take()
            value = f"({value} | {self._and()})"
        return value

    def whole(self) -> str:
        value = self._or()
        if self._rest:
            raise SynthError(f"function {self._text!r}: {self._rest[0]!r} is too much")
        return value


def compiled(text: str, names: Sequence[str]) -> CodeType:
    """Code to evaluate with `x`, the words of the pins `names`, and `ones`, a word of ones.

    Raises
    ------
    SynthError
        If the function is not understood, or names another pin.
    """
    return compile(_Parser(text, names).whole(), f"<{text}>", "eval")
