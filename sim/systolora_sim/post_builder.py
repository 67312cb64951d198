"""POST items, with Scales by name instead of register.

A Scale has the name of its place in memory (`x.scale`), of a constant, or one that begins with `#`
and has a register only. Registers are a cache: what is named and not there is loaded, what has been
idle the longest makes room; only names with `#` stay until they are dropped.
"""

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolora.config import AcceleratorConfig
from systolora.contract import PROGRAM_MAX, SCALE_REGISTERS, Mode, Opcode, Source
from systolora_sim import numerics as nx
from systolora_sim.limits import CompileError
from systolora_sim.memory_map import Area, Symbol, View
from systolora_sim.numerics import Scale
from systolora_sim.program import result_bits, scale_imm
from systolora_sim.work import Control, Exec, Item, Post, Rows

__all__ = ["LATENCY", "MAX_ROWS", "PostBuilder", "Step", "too_long"]

#: Longest row operation of a descriptor.
MAX_ROWS = (1 << 16) - 1
#: About how many cycles a row operation takes beside its rows.
LATENCY = 24
#: Row operations that are put off come at most so many at a time: more would fill the post queue.
BACKGROUND_BURST = 6
#: Scales that they may hold at a time.
BACKGROUND_SCALES = 3
#: About how many cycles it takes to exchange the sticky bits, and back.
SWITCH = 160

_WIDTHS = {1: 0, 2: 1, 4: 2, 8: 3}


def too_long(least: int) -> CompileError:
    """The refusal of a program of that many descriptors, or more."""
    return CompileError(
        f"the program has {least} descriptors or more: must be at most {PROGRAM_MAX}; larger "
        "buffers or a larger array need fewer"
    )


@dataclass(frozen=True)
class Step:
    """A few POSTs that any later moment suits, behind the steps before.

    append : appends them; gets the first of each of two ranges of accumulator rows, in two banks,
    which they may overwrite; rows : of each range; posts, cycles : about how many, and how long
    they take; label : what they are for; name : by which someone may ask for it, or ""; maxima :
    it has maxima of its own; opens : it leaves one for the next step of its name, before which no
    other step with maxima may come.
    """

    append: Callable[[int, int], None]
    rows: int
    posts: int
    cycles: int
    label: str = ""
    name: str = ""
    maxima: bool = False
    opens: bool = False


class PostBuilder:
    """Collects the items of a program.

    Parameters
    ----------
    config : AcceleratorConfig
    symbols : of the memory, by name
    """

    #: POSTs of steps that come at a time: more would fill the post queue, and what follows waits.
    step_burst = 16

    def __init__(self, config: AcceleratorConfig, symbols: dict[str, Symbol]) -> None:
        self.config, self.symbols = config, symbols
        self.items: list[Item] = []
        #: Row operations that any later moment suits, in order, and what to do after each.
        self._background: deque[tuple[Post, str]] = deque()
        self._writes: set[int] = set()  # addresses of the tensors that they write
        #: Steps, each with the place of its sticky bits; the place of those that count now. The
        #: urgent ones come first: someone will ask for them, by name.
        self._steps: deque[tuple[Area, Step]] = deque()
        self._urgent: list[tuple[int, Area, Step]] = []  # in the order of the numbers
        self._counts: Area | None = None
        self._open = ""  # the name of an urgent step that another one must follow
        self._unsettled: deque[Callable[[], None]] = deque()
        #: What must come before and behind steps with maxima of their own, while a product has its.
        self.guard: tuple[Callable[[], None], Callable[[], None]] | None = None
        #: The accumulator bank that the next product begins with.
        self.bank = 0
        #: What is appended now is for, as reports name it.
        self.label = ""
        self._credit = 0  # cycles that they may take, or have taken too many
        self._registers: dict[str, int] = {}  # by name, the longest idle first
        self._free = list(range(SCALE_REGISTERS))[::-1]
        self._pinned: set[str] = set()

    # Items --------------------------------------------------------------------------------------

    def _add(self, item: Item) -> None:
        if len(self.items) >= PROGRAM_MAX:
            raise too_long(len(self.items) + 1)
        if not isinstance(item, Control) and not item.label:
            item.label = self.label
        self.items.append(item)

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """What is appended meanwhile has this label."""
        before, self.label = self.label, label
        yield
        self.label = before

    def exec(self, item: Exec) -> None:
        """Appends an EXEC, behind row operations that were put off if it needs their results."""
        needed = (item.act.area.symbol.address, item.wgt.area.symbol.address)
        if not self._writes.isdisjoint(needed):
            self.flush()
        self._add(item)

    def control(self, item: Control) -> None:
        """Appends a CONTROL."""
        self._add(item)

    def post(
        self, opcode: Opcode, reads: Area | None = None, writes: Area | None = None, **fields: int
    ) -> None:
        """Appends a POST that is no row operation; an Area is one row in memory."""
        self._add(self._item({"opcode": opcode, **fields}, (), reads, writes))

    def count(self, word: Area | None) -> None:
        """What follows sets the sticky bits in this status word in memory, if any."""
        if word is None or word == self._counts:
            return
        if self._counts is not None:
            self.post(Opcode.STICKY_READ, writes=self._counts)
        self.post(Opcode.STICKY_LOAD, reads=word)
        self._counts = word

    def settle_later(self, action: Callable[[], None]) -> None:
        """Puts the end of a product off until the array has its next work."""
        self._unsettled.append(action)

    def settle(self) -> None:
        """Appends what was put off by `settle_later`."""
        while self._unsettled:
            self._unsettled.popleft()()

    def _item(
        self,
        fields: dict[str, int],
        acc: tuple[Rows, ...],
        reads: Area | View | None,
        writes: Area | View | None,
        cycles: int = 0,
    ) -> Post:
        fields = {name: int(value) for name, value in fields.items()}
        areas: list[Area | None] = []
        for prefix, place in (("in", reads), ("out", writes)):
            view = place.view if isinstance(place, Area) else place
            areas.append(None if view is None else view.area)
            if view is not None:
                fields |= {
                    f"{prefix}_address": view.address,
                    f"{prefix}_stride": view.stride,
                    f"{prefix}_width": _WIDTHS[view.area.symbol.itemsize],
                }
        return Post(fields, acc, areas[0], areas[1], cycles)

    def _rows(
        self,
        rows: int,
        cols: int,
        source: Area | View | int,
        out: Area | View | None,
        addend: Area | None,
        fields: dict[str, int],
    ) -> Post:
        fields = {"opcode": Opcode.ROWS, "rows": rows, "cols": cols, **fields}
        acc: list[Rows] = []
        if isinstance(source, int):
            fields["src_base"] = source
            acc.append(Rows(source, source + rows))
        else:
            fields["source"] = Source.STREAM
        if fields.get("write") or (fields.get("add") and not fields.get("add_stream")):
            acc.append(Rows(fields["dst_base"], fields["dst_base"] + rows))
        quantizes = result_bits(fields.get("mode", Mode.RAW), fields.get("quantize", 0))
        if out is not None and not quantizes:
            fields["emit"] = 1
        reads = addend if isinstance(source, int) else source
        return self._item(fields, tuple(acc), reads, out, rows + LATENCY)

    def rows(
        self,
        rows: int,
        cols: int,
        source: Area | View | int,
        out: Area | View | None = None,
        **fields: int,
    ) -> None:
        """Appends a row operation.

        source : memory, or the first accumulator row; out : where its results or, of RAW and ACC
        without `quantize`, its values go. With `quantize`, src_b is the register of the Scale that
        quantizes (`quantization.quantizing_value`); the configuration must have fused_quantize.
        """
        self._add(self._rows(rows, cols, source, out, None, fields))

    def join(
        self, source: int, addend: Area, out: Area | View | None = None, **fields: int
    ) -> None:
        """Appends a row operation that adds rows in memory to those from accumulator row `source`.

        out, fields : as of `rows`; dst_base only with `write`
        """
        fields |= {"add": 1, "add_stream": 1}
        self._add(self._rows(addend.rows, addend.cols, source, out, addend, fields))

    # Background ---------------------------------------------------------------------------------

    def later(
        self, rows: int, cols: int, source: Area, out: Area, drop: str = "", **fields: int
    ) -> None:
        """A row operation for `spare`, from memory to memory; `drop` names a Scale it frees."""
        while drop and sum(bool(each) for _, each in self._background) >= BACKGROUND_SCALES:
            self._next()
        item = self._rows(rows, cols, source, out, None, fields)
        item.label = self.label
        self._background.append((item, drop))
        self._writes.add(out.symbol.address)

    def put_off(self, word: Area, steps: Iterable[Step]) -> None:
        """Steps for `spare` or `finish`; `word` is the status word that their events are for."""
        self._steps.extend((word, step) for step in steps)

    def put_off_until(self, number: int, word: Area, steps: Iterable[Step]) -> None:
        """Steps that someone will `need`; such steps come first, by ascending numbers.

        They use no accumulators.
        """
        for step in steps:
            assert step.name and not step.rows
            bisect.insort(self._urgent, (number, word, step), key=lambda each: each[0])

    def need(self, *names: str) -> None:
        """Appends the steps of these names, if they are not there yet."""
        wanted = [number for number, each in enumerate(self._urgent) if each[2].name in names]
        for _ in wanted:
            while self._open and self._open not in names:
                self._take(self._first_urgent())
            self._take(self._first_urgent(names))

    def _first_urgent(self, names: Iterable[str] = ()) -> int:
        """The place of the urgent step that comes next, of all or of those of these names."""
        allowed = (self._open,) if self._open else names
        for number, (_, _, step) in enumerate(self._urgent):
            if not allowed or step.name in allowed:
                return number
        raise RuntimeError(f"no step {', '.join(allowed)}")

    def _take(self, place: int) -> None:
        """Appends the urgent step in that place."""
        _, word, step = self._urgent.pop(place)
        self._append(word, step, 0, 0)

    def _append(self, word: Area, step: Step, at_w: int, at_u: int) -> None:
        if step.maxima and self.guard is not None:
            self.guard[0]()
        self.count(word)
        with self.labelled(step.label):
            step.append(at_w, at_u)
        if step.maxima:
            self._open = step.name if step.opens else ""
            if self.guard is not None:
                self.guard[1]()

    def spare(self, cycles: int, free: tuple[Rows, Rows] | None = None) -> None:
        """Appends row operations that were put off: the post queue has about that much time.

        What they take more than that is made good by the next ones. free : accumulator rows of two
        banks, in which the array does not work meanwhile, and whose values nobody needs; None:
        none.
        """
        self._credit += cycles
        for _ in range(BACKGROUND_BURST):
            if not self._background or self._credit <= 0:
                break
            self._credit -= self._background[0][0].cycles
            self._next()
        self._spare_steps(free)
        self._credit = min(self._credit, 0)

    def _spare_steps(self, free: tuple[Rows, Rows] | None) -> None:
        room = 0 if free is None else min(rows.end - rows.start for rows in free)
        at_w, at_u = (0, 0) if free is None else (free[0].start, free[1].start)
        posts = 0
        while self._urgent or self._steps:
            place = self._first_urgent() if self._urgent else 0
            word, step = self._urgent[place][1:] if self._urgent else self._steps[0]
            cycles = step.cycles + (SWITCH if word != self._counts else 0)
            posts += step.posts
            # Steps that are needed may take more time than there is, once.
            begin = bool(self._urgent) and posts == step.posts and self._credit > 0
            fits = cycles <= self._credit and posts <= self.step_burst
            if step.rows > room or not (begin or fits):
                break
            self._credit -= cycles
            if self._urgent:
                self._take(place)
            else:
                self._steps.popleft()
                self._append(word, step, at_w, at_u)

    def finish(self) -> None:
        """Appends all that was put off; no sum in the accumulators is needed any more."""
        self.settle()
        self.flush()
        while self._urgent:
            self._take(self._first_urgent())
        bank, turn = self.config.bank_depth, 0
        while self._steps:
            word, step = self._steps.popleft()
            turn = 0 if turn + step.rows > bank else turn
            self._append(word, step, turn, bank + turn)
            turn += step.rows
        if self._counts is not None:
            self.post(Opcode.STICKY_READ, writes=self._counts)
            self._counts = None

    def flush(self) -> None:
        """Appends all row operations that were put off by `later`."""
        while self._background:
            self._next()

    def _next(self) -> None:
        item, drop = self._background.popleft()
        self._add(item)
        if drop:
            self.drop(drop)
        if not self._background:
            self._writes.clear()

    # Scales -------------------------------------------------------------------------------------

    def _allocate(self, name: str) -> int:
        if name in self._registers:
            raise RuntimeError(f"scale {name}: has a register")
        if not self._free:
            for idle in self._registers:
                if idle not in self._pinned and not idle.startswith("#"):
                    self._free.append(self._registers.pop(idle))
                    break
            else:
                raise RuntimeError(f"no Scale register is free for {name}")
        self._registers[name] = register = self._free.pop()
        return register

    def scale(self, name: str) -> int:
        """The register of a Scale, loaded from memory if it has none."""
        if name in self._registers:
            self._registers[name] = register = self._registers.pop(name)  # now the last used
            return register
        if name.startswith("#"):
            raise RuntimeError(f"scale {name}: has no register")
        register = self._allocate(name)
        self.post(Opcode.SCALE_LOAD, reads=self.symbols[name].area(), dst=register)
        return register

    def constant(self, scale: Scale) -> str:
        """The name of a constant Scale."""
        name = f"{scale.m} {scale.e}"
        if name not in self._registers:
            self.post(Opcode.SCALE_SET, dst=self._allocate(name), imm=scale_imm(scale))
        return name

    def _operation(self, opcode: Opcode, target: str, a: str, b: str) -> None:
        left = self.scale(a)
        self._pinned.add(a)
        right = self.scale(b)
        self._pinned.add(b)
        if target in self._registers:
            register = self.scale(target)
        else:
            register = self._allocate(target)
        self._pinned -= {a, b}
        self.post(opcode, dst=register, src_a=left, src_b=right)

    def mul(self, target: str, a: str, b: str) -> None:
        """target = a * b."""
        self._operation(Opcode.SCALE_MUL, target, a, b)

    def div(self, target: str, a: str, b: str) -> None:
        """target = a / b."""
        self._operation(Opcode.SCALE_DIV, target, a, b)

    def ratio(self, target: str, bits: int, maximum: int) -> None:
        """target = div(from_int(qmax), from_int(amax register `maximum`))."""
        register = self._allocate("#amax")
        self.post(Opcode.SCALE_AMAX, dst=register, src_a=maximum)
        self.div(target, self.constant(nx.from_int(nx.qmax(bits))), "#amax")
        self.drop("#amax")

    def store(self, name: str, target: str = "") -> None:
        """Stores a Scale in its place in memory, or as `target`."""
        area = self.symbols[target or name].area()
        self.post(Opcode.SCALE_READ, writes=area, src_a=self.scale(name))

    def drop(self, *names: str) -> None:
        """Frees registers of Scales that are not needed again."""
        for name in names:
            self._free.append(self._registers.pop(name))
