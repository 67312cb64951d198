"""Tokens from what descriptors use: where they are needed, where not, and never too many."""

import pytest

from systolora.config import preset
from systolora.contract import TOKENS_MAX, Kind
from systolora_sim.memory_map import MemoryMap, Symbol
from systolora_sim.tokens import place_tokens
from systolora_sim.work import Op, Rows

TINY = preset("tiny")


def tensor(rows: int = 4, cols: int = 64) -> Symbol:
    memory = MemoryMap(0)
    memory.add("t", (rows, cols), "int8", writable=True)
    memory.place()
    return memory.symbols["t"]


def load(entries: Rows, **uses) -> Op:
    return Op(Kind.LOAD, {}, act=entries, **uses)


def execute(entries: Rows, acc: Rows) -> Op:
    return Op(Kind.EXEC, {}, act=entries, wgt=Rows(0, 1), acc=(acc,))


def post(*acc: Rows, **uses) -> Op:
    return Op(Kind.POST, {"opcode": 1}, acc=acc, **uses)


def placed(*ops: Op) -> list[list[str]]:
    """The token fields of each descriptor."""
    place_tokens(TINY, list(ops))
    return [
        sorted(n for n, v in op.fields.items() if v and n.startswith(("wait", "sig"))) for op in ops
    ]


def test_a_chain_and_what_frees_it():
    a, rows = Rows(0, 4), Rows(0, 8)
    assert placed(load(a), execute(a, rows), post(rows), load(a), execute(a, rows)) == [
        ["signal_exec"],
        ["signal_load", "signal_post", "wait_load"],
        ["signal_exec", "wait_exec"],
        ["signal_exec", "wait_exec"],
        ["wait_load", "wait_post"],
    ]


def test_apart_there_are_none():
    """Other entries, rows and memory; and what an earlier token implies."""
    a, b = Rows(0, 4), Rows(4, 8)
    fields = placed(
        load(a), load(b), execute(b, Rows(0, 8)), execute(a, Rows(8, 16)), post(Rows(8, 16)),
        post(Rows(0, 8)),
    )  # fmt: skip
    assert fields == [[], ["signal_exec"], ["wait_load"], ["signal_post"], ["wait_exec"], []]


def test_memory():
    t = tensor()
    left, right = t.area(0, 4, 0, 4), t.area(0, 4, 4, 4)
    a = Rows(0, 1)
    assert placed(
        post(writes=left), post(writes=right), post(reads=left), post(reads=right),
        load(a, reads=t.area(1, 1)),
    ) == [
        ["signal_stream"], ["signal_load", "signal_stream"], ["wait_store"], ["wait_store"],
        ["wait_store"],
    ]  # fmt: skip


def test_a_store_over_what_may_still_be_loading_is_refused():
    t, a, rows = tensor(), Rows(0, 1), Rows(0, 4)
    with pytest.raises(RuntimeError, match="descriptor 1 stores to t, which descriptor 0 may"):
        placed(load(a, reads=t.area()), post(writes=t.area()))
    placed(load(a, reads=t.area()), execute(a, rows), post(rows, writes=t.area()))


def test_tokens_that_would_be_too_many_are_merged():
    count = 3 * TOKENS_MAX
    t = tensor(count, 64)
    ops = [post(writes=t.area(row, 1)) for row in range(count)]
    ops += [post(reads=t.area(row, 1)) for row in range(count)]
    place_tokens(TINY, ops)
    given = most = 0
    for op in ops:
        given -= op.fields.get("wait_store", 0)
        assert given >= 0
        given += op.fields.get("signal_stream", 0)
        most = max(most, given)
    assert given == 0
    assert most <= TOKENS_MAX
    # Each reader waits for the store of its row, or one behind it.
    known = -1
    signals = [index for index, op in enumerate(ops) if op.fields.get("signal_stream")]
    for row, op in enumerate(ops[count:]):
        if op.fields.get("wait_store"):
            known = signals.pop(0)
        assert known >= row
