"""Counts the tokens of one channel on the side that takes them."""

from collections.abc import Hashable

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora import contract

__all__ = ["TokenCounter"]


class TokenCounter(wiring.Component):
    """Tokens given and not yet taken, up to contract.TOKENS_MAX; more than one is never lost.

    Members
    -------
    give, take : a token comes, one goes; both may come in one cycle; `take` needs `any`
    any : a token is there, from the cycle after it came
    """

    design_key: Hashable = ()

    give: In(1)
    take: In(1)
    any: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = Signal(range(contract.TOKENS_MAX + 1))
        m.d.comb += self.any.eq(count != 0)
        with m.If(self.give & ~self.take):
            m.d.sync += count.eq(count + 1)
        with m.Elif(self.take & ~self.give):
            m.d.sync += count.eq(count - 1)
        return m
