"""The whole accelerator without timing: runs a program in memory exactly as docs/system.md says.

The middle rung between the golden model and the RTL of `systolora_top`. Descriptors are executed in
program order, which their tokens always allow; what a POST does to its rows is the Core's
`systolora_sim.machine.Machine`. In strict mode the machine also proves that no other order which
the tokens allow could give another result (`system_order`), and that nothing undefined matters.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    POST,
    PROGRAM_MAX,
    STEP_WORD,
    Action,
    Buffer,
    Dataflow,
    Edge,
    Fault,
    Kind,
    Layout,
    Opcode,
    Source,
)
from systolora_sim.machine import POISON, Machine, MachineError
from systolora_sim.program import PostCommand, result_bits
from systolora_sim.strided import strided, strided_once
from systolora_sim.system_checks import (
    Checker,
    Extent,
    Fields,
    Window,
    exec_shape,
    load_reads,
    post_reads,
    post_writes,
)
from systolora_sim.system_defined import Defined, UndefinedError
from systolora_sim.system_order import OrderProof

__all__ = ["Counters", "Memory", "RunResult", "SystemMachine", "UndefinedError"]

#: What buffers hold before anything is loaded, and after the end of a row.
POISON_BYTE = 0xA5
#: Operands of one product at most: bounds the memory of an EXEC, and keeps float64 sums exact
#: (2^22 products of two int16 are below 2^53).
CHUNK = 1 << 22
_WORD = (1 << 32) - 1


class Memory:
    """A piece of memory.

    Parameters
    ----------
    base : address of its first byte
    data : uint8 [size], used as it is: stores change it
    """

    def __init__(self, base: int, data: NDArray[np.uint8]) -> None:
        self.base, self.data = base, data

    def offset(self, first: int, end: int) -> int:
        """Where the bytes first..end (exclusive) begin in `data`.

        Raises
        ------
        MachineError
            If they are not all in this memory: windows are to lie inside it.
        """
        if first < self.base or end > self.base + self.data.size:
            raise MachineError(
                f"memory {first:#x}..{end:#x}: outside the image {self.base:#x}.."
                f"{self.base + self.data.size:#x}"
            )
        return first - self.base

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes from an address."""
        start = self.offset(address, address + count)
        return self.data[start : start + count].tobytes()

    def write(self, address: int, data: bytes) -> None:
        """Stores bytes at an address."""
        start = self.offset(address, address + len(data))
        self.data[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def rows(self, extent: Extent) -> NDArray[np.uint8]:
        """The rows of an extent, uint8 [rows, row_bytes], as a view; rows may overlap."""
        start = self.offset(extent.address, extent.end)
        return strided(self.data, start, (extent.rows, extent.row_bytes), (extent.stride, 1))


@dataclass
class Counters:
    """What the counters of the same names count (contract.COUNTERS) that need no time.

    bytes_read holds every descriptor of the program once for each run.
    """

    macs: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    descriptors: int = 0


@dataclass
class RunResult:
    """How a run ended.

    fault : NONE after END; index : number of the descriptor with the fault, else 0; sticky : names
    of the status bits; word_base, step : the registers afterwards; runs : runs that reached END.
    """

    fault: Fault
    index: int
    sticky: set[str]
    word_base: int
    step: int
    runs: int
    counters: Counters = field(default_factory=Counters)

    def __str__(self) -> str:
        end = "done" if self.fault == Fault.NONE else f"{self.fault.name} at {self.index}"
        return f"{end}, runs {self.runs}, sticky {sorted(self.sticky)}, {asdict(self.counters)}"


class SystemMachine:
    """A functional accelerator; buffers, accumulators and registers survive from run to run.

    The lanes' maxima, the Core's status bits and what AMAX_SELECT found do not. `sticky` of a
    result is the register STICKY, which nobody clears: the bits of all runs.

    Parameters
    ----------
    config : AcceleratorConfig
    memory : Memory
    read_window, write_window : (base, limit)
        First permitted address and the first after it.
    strict : bool
        Whether to refuse what the hardware runs, but with a result that luck decides.

    Raises
    ------
    RaceError, UndefinedError
        From `run`, in strict mode: the message names descriptors and resource.
    MachineError
        From `run`: a descriptor reaches memory that is in a window, but not in `memory`.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        memory: Memory,
        read_window: tuple[int, int],
        write_window: tuple[int, int],
        strict: bool = True,
    ) -> None:
        self.config, self.memory, self.strict = config, memory, strict
        self.read_window, self.write_window = Window(*read_window), Window(*write_window)
        self.core = Machine(config, strict=False)
        self.act = np.full(config.act_bytes, POISON_BYTE, np.uint8)
        #: The banks one after the other.
        self.wgt = np.full(config.wgt_bytes, POISON_BYTE, np.uint8)
        self._bank_bytes = config.wgt_bytes // config.segments
        self._counters = Counters()
        self._word_base = self._step = 0
        #: The register STICKY: every bit that the Core's status bits had.
        self._sticky: set[str] = set()
        self._index = 0
        self._proof = OrderProof(config, memory.base, memory.data.size) if strict else None
        self._defined = Defined(config)

    def run(
        self, program_address: int, length: int, runs: int = 1, word_base: int = 0, step: int = 0
    ) -> RunResult:
        """Runs a program of `length` descriptors `runs` times (0 counts as 1), to END or a fault.

        word_base and step are the registers of these names at the start.
        """
        self._counters = Counters()
        self._word_base, self._step = word_base, step
        fault, index, done = Fault.NONE, 0, 0
        while done < max(runs, 1) and fault == Fault.NONE:
            fault, index = self._run_once(program_address, length)
            done += fault == Fault.NONE
        return RunResult(
            fault, index, set(self._sticky), self._word_base, self._step, done, self._counters
        )

    def _run_once(self, address: int, length: int) -> tuple[Fault, int]:
        # A run begins with a reset of the Core, whose memories keep what they hold
        self.core.lanes[:] = 0
        self.core.fallback = False
        self.core.sticky.clear()
        if not 1 <= length <= PROGRAM_MAX:
            return Fault.END, 0
        align = max(DESCRIPTOR_BYTES, self.config.beat_bytes)
        if address % align:
            return Fault.ALIGN, 0
        size = length * DESCRIPTOR_BYTES
        whole = -(-size // align) * align  # words of the bus
        if not self.read_window.holds(address, address + whole):
            return Fault.WINDOW, 0
        program = self.memory.read(address, size)
        self._counters.bytes_read += whole
        checker = Checker(self.config, self.read_window, self.write_window)
        if self._proof is not None:
            self._proof.begin(address, size)
        for index in range(length):
            start = index * DESCRIPTOR_BYTES
            fault, kind, f = checker.check(program[start : start + DESCRIPTOR_BYTES])
            if fault != Fault.NONE:
                return fault, index
            self._counters.descriptors += 1
            self._index = index
            if self._proof is not None and kind is not None:
                self._proof.descriptor(kind, f)
            if kind == Kind.LOAD:
                self._load(f)
            elif kind == Kind.EXEC:
                self._exec(f)
            elif kind == Kind.POST:
                self._post(f)
            elif f["action"] == Action.END:
                return Fault.NONE, 0
            elif f["action"] == Action.STEP:
                self._word_base = (self._word_base + STEP_WORD) & _WORD
                self._step = (self._step + 1) & _WORD
        return Fault.END, length

    # LOAD -----------------------------------------------------------------------------------

    def _load(self, f: Fields) -> None:
        config, extent = self.config, load_reads(f)
        rows = self.memory.rows(extent)
        padded = -(-extent.row_bytes // config.beat_bytes) * config.beat_bytes
        self._counters.bytes_read += extent.rows * padded
        if self._proof is not None:
            self._proof.loaded(extent)
        if f["buffer"] == Buffer.ACT:
            entry = config.act_entry_bytes
            self._fill(False, rows, f["base"] * entry, f["row_step"] * entry, padded)
            return
        if f["layout"] == Layout.PLAIN:
            places = {0: np.arange(extent.rows)}
        else:
            group = config.left_load if f["layout"] == Layout.LEFT else config.top_load
            bank = np.arange(extent.rows) // group % config.segments
            places = {s: np.flatnonzero(bank == s) for s in range(config.segments)}
        entry = config.wgt_entry_bytes
        for s, index in places.items():
            start = s * self._bank_bytes + f["base"] * entry
            self._fill(True, rows[index], start, f["row_step"] * entry, padded)

    def _fill(self, wgt: bool, rows: NDArray[np.uint8], start: int, step: int, padded: int) -> None:
        """Writes rows [n, row_bytes], padded, every `step` bytes from `start` of a buffer on."""
        count, row_bytes = rows.shape
        if count == 0:
            return
        if self._proof is not None:
            self._proof.filled(wgt, start, count, step, padded)
        overlap = count > 1 and step < padded
        places = (start, (count, padded), (step, 1))
        target = strided(self.wgt if wgt else self.act, *places)
        marks = strided(self._defined.wgt if wgt else self._defined.act, *places)
        # Rows that overlap go one by one: the later one stays
        for part in map(slice, range(count), range(1, count + 1)) if overlap else [slice(None)]:
            target[part, :row_bytes] = rows[part]
            target[part, row_bytes:] = POISON_BYTE
            if self.strict:
                marks[part, :row_bytes] = True
                marks[part, row_bytes:] = False

    # EXEC -----------------------------------------------------------------------------------

    def _act(self, f: Fields) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Where the streamed operand lies: bytes [repeat, length, R, planes]."""
        unit, planes = self.config.act_unit, 2 if f["act_wide"] else 1
        return (
            f["act_base"] * unit,
            (f["repeat"], f["length"], self.config.rows, planes),
            (f["act_step"] * unit, f["act_stride"] * unit, planes, 1),
        )

    def _wgt(self, f: Fields) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """The stationary (OS: top) operand: [repeat, S (OS: 1), lines, elements, planes]."""
        config, unit, planes = self.config, self.config.wgt_unit, 2 if f["wgt_wide"] else 1
        shape = exec_shape(config, f)
        banks = 1 if f["dataflow"] == Dataflow.OS else config.segments
        elements = shape.line_units * unit // planes
        return (
            f["wgt_base"] * unit,
            (f["repeat"], banks, shape.lines, elements, planes),
            (f["wgt_step"] * unit, self._bank_bytes, f["wgt_stride"] * unit, planes, 1),
        )

    def _exec(self, f: Fields) -> None:
        config = self.config
        repeat, length, last = f["repeat"], f["length"], f["last"]
        os = f["dataflow"] == Dataflow.OS
        passes = (1 + f["act_wide"]) * (1 + f["wgt_wide"])
        self._counters.macs += passes * length * f["cols"] * ((repeat - 1) * config.rows + last)
        if self._proof is not None:
            self._proof.fed(f)
        act = _elements(strided(self.act, *self._act(f)))
        wgt = _elements(strided(self.wgt, *self._wgt(f)))
        rows_ok, cols_ok = self._operands_defined(f)
        if f["acc_step"] == 0:
            self._exec_one_sum(f, act, wgt, np.all(rows_ok, axis=0), np.all(cols_ok, axis=0))
            return
        for n in range(repeat):
            sums = self._products(act[n : n + 1], wgt[n : n + 1], f, last if n == repeat - 1 else 0)
            if os and n == repeat - 1:
                sums = sums[:last]
            self._accumulate(f, n, sums, rows_ok[n % len(rows_ok)], cols_ok[n % len(cols_ok)])

    def _operands_defined(self, f: Fields) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows and columns of each tile's sums depend on defined operands only.

        bool [repeat or 1, rows of sums] and [repeat or 1, C], 1 where all tiles are the same; a sum
        is defined if its row and its column are.
        """
        config, os, last = self.config, f["dataflow"] == Dataflow.OS, f["last"]
        rows = config.rows if os else f["length"]
        if not self.strict:
            return np.ones((1, rows), bool), np.ones((1, config.cols), bool)
        act: NDArray = np.all(strided_once(self._defined.act, *self._act(f)), axis=3)
        wgt: NDArray = np.all(strided_once(self._defined.wgt, *self._wgt(f)), axis=4)
        # Axes: tile, reduction, row or column of the sums; beats and lines that are read again
        # and again (step 0) are there once
        if os:
            wgt = wgt[:, 0]
        else:
            act = act.transpose(0, 2, 1)
            wgt = wgt.reshape(wgt.shape[0], -1, wgt.shape[3])
            if f["edge"] == Edge.LEFT:
                wgt = wgt.transpose(0, 2, 1)
        # What the last tile leaves out is not needed: rows of OS, reduction rows of WS
        if act.shape[0] == f["repeat"]:
            spare = act[-1, :, last:] if os else act[-1, last:]
            spare[...] = True
        if wgt.shape[0] == f["repeat"] and not os:
            wgt[-1, last:] = True
        rows_ok = np.broadcast_to(act.all(axis=1), (act.shape[0], rows))
        return rows_ok, np.broadcast_to(wgt.all(axis=1), (wgt.shape[0], config.cols))

    def _exec_one_sum(
        self,
        f: Fields,
        act: NDArray,
        wgt: NDArray,
        rows_ok: NDArray[np.bool_],
        cols_ok: NDArray[np.bool_],
    ) -> None:
        """All tiles add up in the same accumulators."""
        repeat, last = f["repeat"], f["last"]
        each = max(1, CHUNK // max(act[0].size, wgt[0].size))
        total: NDArray[np.int64] | None = None
        for n in range(0, repeat, each):
            end = min(n + each, repeat)
            sums = self._products(act[n:end], wgt[n:end], f, last if end == repeat else 0)
            total = sums if total is None else total + sums
        assert total is not None
        if f["dataflow"] == Dataflow.OS and repeat == 1:
            total = total[:last]
        self._accumulate(f, 0, total, rows_ok, cols_ok)

    def _products(self, act: NDArray, wgt: NDArray, f: Fields, last: int) -> NDArray[np.int64]:
        """The sum of the tiles' products, exact; of the last one `last` of R count unless 0."""
        config, tiles = self.config, act.shape[0]
        values = act.astype(np.float64)
        if last:
            values[-1, :, last:] = 0
        if f["dataflow"] == Dataflow.OS:
            # [tiles * length, R] and [tiles * length, C]: one reduction
            left = values.reshape(-1, config.rows).T
            right = wgt.reshape(-1, config.cols).astype(np.float64)
        else:
            left = values.transpose(1, 0, 2).reshape(f["length"], -1)
            lines = wgt.reshape(tiles, -1, wgt.shape[-1]).astype(np.float64)
            if f["edge"] == Edge.LEFT:
                lines = lines.transpose(0, 2, 1)
            right = lines.reshape(-1, config.cols)
        return (left @ right).astype(np.int64)

    def _accumulate(
        self,
        f: Fields,
        tile: int,
        sums: NDArray[np.int64],
        rows_ok: NDArray[np.bool_],
        cols_ok: NDArray[np.bool_],
    ) -> None:
        base, count = f["acc_base"] + tile * f["acc_step"], sums.shape[0]
        where = slice(base, base + count)
        if self._proof is not None:
            self._proof.summed(base, count)
        defined = rows_ok[:count, None] & cols_ok
        if f["accumulate"]:
            sums = sums + self.core.acc[where]
            defined &= self._defined.acc[where]
        self.core.acc[where] = self._wrapped(sums)
        self._defined.acc[where] = defined

    # POST -----------------------------------------------------------------------------------

    def _post(self, f: Fields) -> None:
        config, opcode = self.config, f["opcode"]
        fields = {
            field.name: f[field.name] for field in POST if field.name not in ("wait", "signal")
        }
        if opcode == Opcode.ROWS and f["stochastic"]:
            fields["word0"] = (f["word0"] + self._word_base) & _WORD
        read, written = post_reads(f), post_writes(f)
        acc_in = np.zeros((0, config.cols), np.int64)
        if self._proof is not None:
            self._prove_post(self._proof, f, read, written)
            self._defined.check_post(self._index, f)
        if read is not None:
            acc_in = np.full((read.rows, config.cols), POISON, np.int64)
            values = self.memory.rows(read).reshape(read.rows, read.elements, read.width)
            acc_in[:, : read.elements] = _from_bytes(values)
            acc_in = self._wrapped(acc_in)
            self._counters.bytes_read += self._beat_bytes(read)
        outputs = self.core.execute_post(PostCommand(fields, acc_in))
        self._sticky |= self.core.sticky
        if written is None:
            return
        if opcode == Opcode.SCALE_READ:
            values = np.array([[outputs.info[0]["m"], outputs.info[0]["e"]]], np.int64)
        elif outputs.info:
            values = np.array([[outputs.info[0]["amax"]]], np.int64)
        elif result_bits(f["mode"], f["quantize"]):
            values = outputs.result[:, : f["cols"]]
        else:
            values = outputs.acc_out[:, : f["cols"]]
        self._counters.bytes_written += written.rows * written.row_bytes
        target = self.memory.rows(written)
        data = _to_bytes(values, written.width)
        if written.rows > 1 and written.stride < written.row_bytes:
            for row, new in zip(target, data, strict=True):  # overlapping: the later one stays
                row[:] = new
        else:
            target[:] = data

    @staticmethod
    def _prove_post(
        proof: OrderProof, f: Fields, read: Extent | None, written: Extent | None
    ) -> None:
        if read is not None:
            proof.streamed(read)
        if f["opcode"] == Opcode.ROWS:
            if f["source"] == Source.BUFFER:
                proof.rows_used(f["src_base"], f["rows"], "reads")
            if f["add"] and not f["add_stream"]:
                proof.rows_used(f["dst_base"], f["rows"], "reads")
            if f["write"]:
                proof.rows_used(f["dst_base"], f["rows"], "writes")
        if written is not None:
            proof.stored(written, read)

    def _wrapped(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        spare = np.int64(64 - self.config.acc_bits)
        return (values << spare) >> spare

    def _beat_bytes(self, extent: Extent) -> int:
        """Bytes of the beats that rows touch."""
        beat = self.config.beat_bytes
        first = extent.address % beat  # the same in every row
        return extent.rows * -(-(first + extent.row_bytes) // beat) * beat


def _elements(planes: NDArray[np.uint8]) -> NDArray:
    """Little-endian operands [..., planes] as a view of integers of 8 or 16 bits."""
    return planes.view(f"<i{planes.shape[-1]}")[..., 0]


def _from_bytes(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Little-endian signed elements [..., width] as integers."""
    width = values.shape[-1]
    return np.ascontiguousarray(values).view(f"<i{width}")[..., 0].astype(np.int64)


def _to_bytes(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Low bytes of integers [rows, n]: uint8 [rows, n * width], little-endian."""
    wide = np.ascontiguousarray(values, "<i8").view(np.uint8)
    return wide.reshape(values.shape[0], -1, 8)[:, :, :width].reshape(values.shape[0], -1)
