"""The Core without timing: executes tile and post commands exactly as docs/core.md says.

The middle rung between the golden model (mathematics) and the RTL. All arithmetic is
`systolora_sim.numerics`. Beyond executing, it refuses programs that would work only by luck: it
proves from the tokens that no command touches accumulator rows which the other queue may still be
using, and that no row is read before it was written.
"""

from collections import deque
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    AMAX_REGISTERS,
    COL_STEP,
    ROW_STEP,
    SCALE,
    SCALE_REGISTERS,
    STICKY,
    TOKENS_MAX,
    Dataflow,
    Edge,
    Limit,
    Mode,
    Opcode,
    Quantize,
    Source,
    Status,
    unpack,
    width,
)
from systolora_sim import numerics as nx
from systolora_sim.numerics import Scale
from systolora_sim.program import CoreDevice, Outputs, PostCommand, TileCommand, result_bits

__all__ = ["DeadlockError", "Machine", "MachineError", "RaceError"]

#: What the accumulators hold before anything is written: easy to recognise in a wrong result.
POISON = 0x5A5A5A5A5A5A
#: Depth of an output-stationary pass (numerics section 8).
LOW_DEPTH, DEPTH = 1 << 15, (1 << 17) - 1

Order = Literal["tile_first", "post_first"]


class MachineError(ValueError):
    """A command that the Core's contract does not allow."""


class RaceError(MachineError):
    """A program that relies on an order which its tokens do not guarantee."""


class DeadlockError(MachineError):
    """Both queues wait for tokens that nobody will give, or tokens are left over at the end."""


class _Tokens:
    """Tokens given by one queue to the other: remembers which command gave each one."""

    def __init__(self, giver: str) -> None:
        self.giver = giver
        self.given: deque[int] = deque()

    def give(self, index: int) -> None:
        self.given.append(index)
        if len(self.given) > TOKENS_MAX:
            raise MachineError(
                f"{len(self.given)} tokens of the {self.giver} queue may be outstanding: "
                f"at most {TOKENS_MAX}"
            )


class Machine(CoreDevice):
    """A functional Core.

    Parameters
    ----------
    config : AcceleratorConfig
    order : "tile_first" or "post_first"
        Which queue runs as far as its tokens allow before the other one gets a turn. A correct
        program gives the same results in both orders.
    strict : bool
        Whether to refuse what the hardware does not detect: rows never written, no stationary tile,
        orders that no token guarantees. Without it such programs run, with undefined values.

    Raises
    ------
    MachineError, RaceError, DeadlockError
        From `flush`, on a program that breaks the contract.
    """

    def __init__(
        self, config: AcceleratorConfig, order: Order = "tile_first", *, strict: bool = True
    ) -> None:
        super().__init__(config)
        self.order: Order = order
        self.strict = strict
        depth, bits = config.acc_depth, config.acc_bits
        self.acc = np.full((depth, config.cols), _wrap(np.int64(POISON), bits), np.int64)
        self.stationary: NDArray[np.int64] | None = None
        self.scales = [nx.ZERO] * SCALE_REGISTERS
        self.amax = [0] * AMAX_REGISTERS
        self.lanes = np.zeros(config.cols, np.int64)
        self.bias = np.zeros(config.cols, np.int64)
        self.sticky: set[str] = set()
        #: The last AMAX_SELECT found no record, so that clipping is no error of a delayed tensor.
        self.fallback = False
        # For the proof of order: per accumulator row the last command of each queue that used it.
        self._written = np.zeros(depth, bool)
        self._last_tile = np.zeros(depth, np.int64)
        self._last_post = np.zeros(depth, np.int64)
        self._tiles_done = self._posts_done = 0
        self._known_posts = self._known_tiles = 0
        self._from_tile, self._from_post = _Tokens("tile"), _Tokens("post")
        self._result: list[NDArray[np.int64]] = []
        self._acc_out: list[NDArray[np.int64]] = []
        self._info: list[dict[str, int]] = []

    async def flush(self) -> Outputs:
        """Executes both queues to their ends; see `CoreDevice.flush`."""
        tiles, posts = deque(self.pending.tiles), deque(self.pending.posts)
        self.pending.tiles.clear()
        self.pending.posts.clear()
        while tiles or posts:
            # The second turn is taken only if the first cannot move: one queue runs ahead.
            if self.order == "tile_first":
                moved = self._try_tile(tiles) or self._try_post(posts)
            else:
                moved = self._try_post(posts) or self._try_tile(tiles)
            if not moved:
                raise DeadlockError(
                    f"no token for either queue: {len(tiles)} tile commands (next: "
                    f"{tiles[0].fields if tiles else 'none'}) and {len(posts)} post commands "
                    f"(next: {posts[0].fields if posts else 'none'}) are left"
                )
        # Idle: whoever queues next has seen everything finish.
        self._known_posts, self._known_tiles = self._posts_done, self._tiles_done
        return self._outputs()

    def execute_post(self, command: PostCommand) -> Outputs:
        """Executes one post command now, past the queues; its token bits are ignored."""
        self._posts_done += 1
        self._post(command)
        return self._outputs()

    def _outputs(self) -> Outputs:
        """What has left since the last call."""
        outputs = Outputs(
            result=_stack(self._result, self.config.cols),
            acc_out=_stack(self._acc_out, self.config.cols),
            info=self._info,
            cycles=None,
            sticky=self._sticky_bits(),
        )
        self._result, self._acc_out, self._info = [], [], []
        return outputs

    def _sticky_bits(self) -> int:
        return sum(1 << STICKY.index(name) for name in self.sticky)

    # Tile queue -------------------------------------------------------------------------------

    def _try_tile(self, queue: "deque[TileCommand]") -> bool:
        if not queue:
            return False
        fields = queue[0].fields
        if fields.get("wait", 0):
            if not self._from_post.given:
                return False
            self._known_posts = self._from_post.given.popleft()
        self._tiles_done += 1
        self._tile(queue.popleft())
        if fields.get("signal", 0):
            self._from_tile.give(self._tiles_done)
        return True

    def _tile(self, command: TileCommand) -> None:
        config, f = self.config, command.fields
        act_low, wgt_low = f.get("act_low", 0), f.get("wgt_low", 0)
        if (act_low or wgt_low) and not config.int16:
            raise MachineError("act_low or wgt_low: this configuration has no byte planes")
        if f["length"] < 1 or f.get("shift", 0) > 2:
            raise MachineError(f"length = {f['length']}, shift = {f.get('shift', 0)}: out of range")
        act = _signed(command.act, act_low)
        if f.get("dataflow", Dataflow.WS) == Dataflow.OS:
            most = LOW_DEPTH if act_low and wgt_low else DEPTH
            if f["length"] > most:
                raise MachineError(f"OS length = {f['length']}: at most {most}")
            rows = f.get("out_rows", 0)
            if not 1 <= rows <= config.rows:
                raise MachineError(f"out_rows = {rows}: must be 1 to {config.rows}")
            line = _signed(command.wgt[:, : config.cols], wgt_low)
            self.stationary = None  # the top operand passed through its registers
            sums = _product(act.T, line)[:rows]
        else:
            if f.get("load", 0):
                self.stationary = _signed(self._loaded(command).astype(np.uint8), wgt_low)
            if self.stationary is None:
                if self.strict:
                    raise MachineError("WS without load, but the command before left no tile")
                self.stationary = np.zeros((config.rows, config.cols), np.int64)
            sums = _product(act, self.stationary)
        base, count = f.get("acc_base", 0), sums.shape[0]
        where = self._bank("tile", base, count)
        accumulate = f.get("accumulate", 0)
        self._order_tile(where, accumulate)
        sums = sums << np.int64(8 * f.get("shift", 0))
        if accumulate:
            sums = sums + self.acc[where]
        self.acc[where] = _wrap(sums, config.acc_bits)
        self._written[where] = True

    def _loaded(self, command: TileCommand) -> NDArray[np.int64]:
        """The bytes of the stationary tile [R, C] from its `wgt` beats."""
        config = self.config
        lines = command.wgt.reshape(-1, config.segments, config.lanes)
        left = command.fields.get("edge", Edge.TOP) == Edge.LEFT
        each = config.left_load if left else config.top_load
        tile = np.zeros((config.rows, config.cols), np.int64)
        for beat in range(each):
            for segment in range(config.segments):
                index = segment * each + each - 1 - beat
                if left:
                    tile[:, index] = lines[beat, segment, : config.rows]
                else:
                    tile[index, :] = lines[beat, segment, : config.cols]
        return tile

    def _order_tile(self, where: slice, accumulate: int) -> None:
        if not self.strict:
            return
        late = self._last_post[where] > self._known_posts
        if late.any():
            row = where.start + int(np.argmax(late))
            raise RaceError(
                f"tile command {self._tiles_done} writes accumulator row {row}, which post command "
                f"{self._last_post[row]} may still be using"
            )
        if accumulate and not self._written[where].all():
            row = where.start + int(np.argmin(self._written[where]))
            raise MachineError(
                f"tile command {self._tiles_done} adds to accumulator row {row}, never written"
            )
        self._last_tile[where] = self._tiles_done

    # Post queue -------------------------------------------------------------------------------

    def _try_post(self, queue: "deque[PostCommand]") -> bool:
        if not queue:
            return False
        fields = queue[0].fields
        if fields.get("wait", 0):
            if not self._from_tile.given:
                return False
            self._known_tiles = self._from_tile.given.popleft()
        self._posts_done += 1
        self._post(queue.popleft())
        if fields.get("signal", 0):
            self._from_post.give(self._posts_done)
        return True

    def _post(self, command: PostCommand) -> None:
        f = command.fields
        opcode, dst, imm = f.get("opcode", 0), f.get("dst", 0), f.get("imm", 0)
        a, b = f.get("src_a", 0), f.get("src_b", 0)
        if opcode == Opcode.ROWS:
            self._rows(command)
        elif opcode == Opcode.BIAS:
            self.bias = command.acc_in[0]
        elif opcode == Opcode.COLLECT:
            self.amax[dst] = max(self.amax[dst], int(self.lanes.max()))
            self.lanes = np.zeros_like(self.lanes)
        elif opcode == Opcode.AMAX_SET:
            self.amax[dst] = imm
        elif opcode == Opcode.AMAX_READ:
            self._info.append({"amax": self.amax[a], "m": 0, "e": 0})
        elif opcode == Opcode.SCALE_SET:
            self.scales[dst] = _scale(imm)
        elif opcode == Opcode.SCALE_MUL:
            self.scales[dst] = nx.mul(self.scales[a], self.scales[b], self.sticky)
        elif opcode == Opcode.SCALE_DIV:
            self.scales[dst] = nx.div(self.scales[a], self.scales[b], self.sticky)
        elif opcode == Opcode.SCALE_AMAX:
            self.scales[dst] = nx.from_int(self.amax[a])
        elif opcode == Opcode.SCALE_READ:
            scale = self.scales[a]
            self._info.append({"amax": 0, "m": scale.m, "e": scale.e})
        elif opcode == Opcode.SCALE_LOAD:
            m, e = (int(lane) for lane in command.acc_in[0, :2])
            bits = width(SCALE, "m")
            self.scales[dst] = _scale(m & ((1 << bits) - 1) | e << bits)
        elif opcode == Opcode.AMAX_LOAD:
            self.amax[dst] = int(command.acc_in[0, 0]) & ((1 << self.config.acc_bits) - 1)
        elif opcode == Opcode.AMAX_SELECT:
            self.fallback = self.amax[a] == 0
            self.amax[dst] = self.amax[b] if self.fallback else self.amax[a]
        elif opcode == Opcode.STICKY_LOAD:
            bits = int(command.acc_in[0, 0])
            self.sticky = {name for n, name in enumerate(STICKY) if bits >> n & 1}
        elif opcode == Opcode.STICKY_READ:
            self._info.append({"amax": self._sticky_bits(), "m": 0, "e": 0})

    def _rows(self, command: PostCommand) -> None:
        config, f = self.config, command.fields
        rows, cols, mode = f["rows"], f.get("cols", 0), f.get("mode", Mode.RAW)
        quantizes = mode in (Mode.INT8, Mode.INT16)
        if rows < 1 or not 1 <= cols <= config.cols:
            raise MachineError(f"ROWS of {rows} rows, {cols} columns: out of range")
        quantize = f.get("quantize", Quantize.NONE)
        only_sums = ("add", "bias", "write", "emit", "negate", "limit", "status", "quantize")
        if quantizes and any(f.get(name, 0) for name in only_sums):
            raise MachineError(f"ROWS: {', '.join(only_sums)} are of RAW and ACC only")
        if quantize and not config.fused_quantize:
            raise MachineError(
                f"ROWS: quantize = {quantize}: this configuration has no fused_quantize"
            )
        if quantize not in tuple(Quantize) or (quantize and f.get("emit", 0)):
            raise MachineError(f"ROWS: quantize = {quantize}: must be INT8 or INT16, without emit")
        if result_bits(mode, quantize) == 16 and not config.int16:
            raise MachineError("ROWS INT16: this configuration has 8-bit results")
        reads, writes = [], []
        if f.get("source", Source.BUFFER) == Source.BUFFER:
            reads.append(self._bank("src", f.get("src_base", 0), rows))
        joins = f.get("add_stream", 0)
        if joins and (f.get("source", Source.BUFFER) == Source.STREAM or not f.get("add", 0)):
            raise MachineError("ROWS: add_stream needs source BUFFER and add")
        if f.get("add", 0) and not joins:
            reads.append(self._bank("dst", f.get("dst_base", 0), rows))
        if f.get("write", 0):
            writes.append(self._bank("dst", f.get("dst_base", 0), rows))
        if f.get("source", Source.BUFFER) == Source.BUFFER and (len(reads) > 1 or writes):
            distance = abs(f.get("src_base", 0) - f.get("dst_base", 0))
            if 0 < distance < rows:
                raise MachineError(
                    f"ROWS: rows at {f.get('src_base', 0)} and {f.get('dst_base', 0)} overlap"
                )
        for where in reads:
            self._order_post(where, reading=True)
        for where in writes:
            self._order_post(where, reading=False)

        if f.get("source", Source.BUFFER) == Source.STREAM:
            x = command.acc_in[:, :cols]
        else:
            x = self.acc[reads[0], :cols]
        if f.get("sign", 0):
            x = np.sign(x)
        if quantizes:
            magnitude = x
            self._quantize(f, x, f.get("src_a", 0))
        else:
            v = self._sum(f, x, command.acc_in[:, :cols])
            magnitude = v
            if writes:
                self.acc[writes[0]] = self._padded(v)
                self._written[writes[0]] = True
            if f.get("emit", 0):
                self._acc_out.append(self._padded(v))
            if quantize:
                self._quantize(f, v, f.get("src_b", 0))
        if f.get("amax", 0):
            self.lanes[:cols] = np.maximum(self.lanes[:cols], np.abs(magnitude).max(axis=0))

    def _quantize(self, f: dict[str, int], x: NDArray[np.int64], register: int) -> None:
        """Sends x, quantized by the Scale in that register."""
        bits = result_bits(f.get("mode", Mode.RAW), f.get("quantize", Quantize.NONE))
        limit = nx.qmax(bits)
        words = self._words(f, *x.shape) if f.get("stochastic", 0) else None
        q, clipped = nx.rescale(x, self.scales[register], -limit, limit, words)
        if clipped and f.get("delayed", 0) and not self.fallback:
            self.sticky.add("clip_delayed")
        self._result.append(self._padded(q))

    def _sum(
        self, f: dict[str, int], x: NDArray[np.int64], beats: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """v of a RAW or ACC row operation; `beats` : what came on acc_in."""
        cols = x.shape[1]
        limit = f.get("limit", Limit.ACC)
        term_bits = self.config.acc_bits if limit == Limit.ACC else 32
        v, over, term_over = x, False, False
        if f.get("mode", Mode.RAW) == Mode.ACC:
            dithered = f.get("stochastic", 0) and not f.get("quantize", Quantize.NONE)
            words = self._words(f, *x.shape) if dithered else None
            scale = self.scales[f.get("src_a", 0)]
            v, term_over = nx.rescale(x, scale, *nx.int_range(term_bits), words)
        if f.get("negate", 0):
            v = -v
        terms = []
        if f.get("add", 0):
            base = f.get("dst_base", 0)
            held = self.acc[base : base + f["rows"], :cols]
            terms.append(beats if f.get("add_stream", 0) else held)
        if f.get("bias", 0):
            terms.append(self.bias[:cols])
        if limit == Limit.INT16:
            exact = v + sum(terms)
            v = np.clip(exact, -nx.qmax(16), nx.qmax(16))
            over = bool((v != exact).any())
        elif terms or f.get("negate", 0):
            v, over = nx.add_sat(v, *terms, bits=term_bits)
        status = f.get("status", Status.ACC_SAT)
        if status == Status.ACC_SAT and (over or term_over):
            self.sticky.add("acc_sat")
        elif over and status == Status.MASTER:
            self.sticky.add("master_range")
        elif over and status == Status.MOMENTUM:
            self.sticky.add("momentum_range")
        return v

    def _words(self, f: dict[str, int], rows: int, cols: int) -> NDArray[np.uint32]:
        steps = (COL_STEP, ROW_STEP) if f.get("transposed", 0) else (ROW_STEP, COL_STEP)
        row = np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(steps[0])
        col = np.arange(cols, dtype=np.uint64)[None, :] * np.uint64(steps[1])
        x = (np.uint64(f.get("word0", 0)) + row + col) & np.uint64(0xFFFFFFFF)
        return nx.mix(x.astype(np.uint32))

    def _padded(self, v: NDArray[np.int64]) -> NDArray[np.int64]:
        wide = np.zeros((v.shape[0], self.config.cols), np.int64)
        wide[:, : v.shape[1]] = v
        return wide

    def _order_post(self, where: slice, *, reading: bool) -> None:
        if not self.strict:
            return
        late = self._last_tile[where] > self._known_tiles
        if late.any():
            row = where.start + int(np.argmax(late))
            raise RaceError(
                f"post command {self._posts_done} {'reads' if reading else 'writes'} accumulator "
                f"row {row}, which tile command {self._last_tile[row]} may still be writing"
            )
        if reading and not self._written[where].all():
            row = where.start + int(np.argmin(self._written[where]))
            raise MachineError(
                f"post command {self._posts_done} reads accumulator row {row}, never written"
            )
        self._last_post[where] = self._posts_done

    def _bank(self, who: str, base: int, count: int) -> slice:
        """The rows base .. base + count - 1, which must lie in one bank."""
        depth = self.config.bank_depth
        if base + count > self.config.acc_depth or base // depth != (base + count - 1) // depth:
            raise MachineError(
                f"{who} rows {base}..{base + count - 1}: must lie in one bank of {depth} rows"
            )
        return slice(base, base + count)


def _product(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """a @ b, exact: sums of at most 2^17 products below 2^16 are integers that float64 holds."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def _signed(planes: NDArray[np.uint8], low: int) -> NDArray[np.int64]:
    """Bytes as integers: unsigned where they are low planes, else signed."""
    return planes.astype(np.int64) if low else planes.view(np.int8).astype(np.int64)


def _scale(word: int) -> Scale:
    """A SCALE word's low bits as a Scale; a mantissa below 2^15 makes it zero."""
    fields = unpack(SCALE, word)
    return Scale(**fields) if fields["m"] >= nx.M_MIN else nx.ZERO


def _wrap(values: NDArray[np.int64] | np.int64, bits: int) -> NDArray[np.int64]:
    """Values modulo 2^bits, as signed integers."""
    return (np.asarray(values, np.int64) << np.int64(64 - bits)) >> np.int64(64 - bits)


def _stack(blocks: list[NDArray[np.int64]], cols: int) -> NDArray[np.int64]:
    return np.concatenate(blocks) if blocks else np.zeros((0, cols), np.int64)
