"""The generated Core in a simulator, as a `CoreDevice`.

One coroutine drives every stream: on each falling edge it reads what moved at the rising edge
before (see `wrapper`) and sets what may move at the next.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import INFO, POST, TILE, pack, unpack
from systolora_sim.bench.wrapper import (
    INPUTS,
    OUTPUTS,
    STATUS_BUSY,
    STATUS_STICKY,
    widths,
)
from systolora_sim.program import CoreDevice, Outputs, post_beats

__all__ = ["RtlDevice", "StreamError"]

#: Cycles in which nothing moves before the bench gives up: longer than the longest drain.
WATCHDOG = 20_000
#: Idle cycles at the end in which nothing more may leave.
QUIET = 64
#: Cycles after which a stalling stream chooses another probability.
MOOD = 61
MOODS = (0.0, 0.0, 0.25, 0.5, 0.9)


class StreamError(RuntimeError):
    """The Core stopped, or sent something that nobody asked for."""


class _Stalls:
    """Random stalls: which streams may move in the next cycle, as a mask."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self.count = count
        self.cycle = 0
        self.limits = [0.0] * count

    def allowed(self) -> int:
        if self.cycle % MOOD == 0:
            self.limits = [self.random.choice(MOODS) for _ in range(self.count)]
        self.cycle += 1
        mask = 0
        for stream, limit in enumerate(self.limits):
            if self.random.random() >= limit:
                mask |= 1 << stream
        return mask


class RtlDevice(CoreDevice):
    """The Core behind the wrapper.

    Parameters
    ----------
    dut : handle of the wrapper
    config : AcceleratorConfig of the Verilog
    stall_seed : seed of random stalls on every stream, None for none
    """

    def __init__(
        self,
        dut: Any,
        config: AcceleratorConfig,
        stall_seed: int | None = None,
    ) -> None:
        super().__init__(config)
        self.dut = dut
        streams = len(INPUTS) + len(OUTPUTS)
        self.stalls = None if stall_seed is None else _Stalls(stall_seed, streams)
        self.act_beats = 0
        self._beats = {name: getattr(dut, f"{name}_beat") for name in INPUTS + OUTPUTS}

    async def reset(self) -> None:
        """Starts the clock, resets the Core and leaves every stream idle."""
        dut = self.dut
        for handle in (dut.sticky_clear, dut.in_valid, dut.out_ready):
            handle.value = 0
        for name in INPUTS:
            self._beats[name].value = 0
        dut.rst.value = 1
        Clock(dut.clk, 2, "ns").start()
        for _ in range(4):
            await FallingEdge(dut.clk)
        dut.rst.value = 0
        await FallingEdge(dut.clk)

    async def flush(self) -> Outputs:
        """Drives everything queued; see `CoreDevice.flush`.

        Raises
        ------
        StreamError
            If no beat moves for `WATCHDOG` cycles, or an unexpected beat leaves.
        """
        tiles, posts = self.pending.tiles, self.pending.posts
        self.pending.tiles, self.pending.posts = [], []
        config = self.config
        sources: Sequence[Iterator[int]] = [
            (pack(TILE, command.fields) for command in tiles),
            (pack(POST, command.fields) for command in posts),
            (beat for command in tiles for beat in _ints(command.act)),
            (beat for command in tiles for beat in _ints(command.wgt)),
            (
                beat
                for command in posts
                if len(command.acc_in)
                for beat in _ints(_acc_bytes(command.acc_in, config.acc_bits))
            ),
        ]
        left = dict.fromkeys(OUTPUTS, 0)
        for command in posts:
            for name, beats in post_beats(command.fields).items():
                if name in left:
                    left[name] += beats
        got, cycles, status = await self._drive(sources, [left[name] for name in OUTPUTS])
        acc_out, result, info = got
        return Outputs(
            result=_rows(result, config.cols, config.result_bits),
            acc_out=_rows(acc_out, config.cols, config.acc_bits),
            info=[unpack(INFO, word) for word in info],
            cycles=cycles,
            sticky=status >> STATUS_STICKY,
        )

    async def _drive(
        self, sources: Sequence[Iterator[int]], expected: list[int]
    ) -> tuple[list[list[int]], int, int]:
        """The clock loop: beats that left per output, cycles, and the last status."""
        dut, stalls, edge = self.dut, self.stalls, FallingEdge(self.dut.clk)
        status_handle, valid_handle, ready_handle = dut.status, dut.in_valid, dut.out_ready
        ports = [self._beats[name] for name in INPUTS]
        outs = [self._beats[name] for name in OUTPUTS]
        n_in = len(INPUTS)
        in_bits = [(1 << n, n) for n in range(n_in)]
        out_bits = [(1 << (n_in + n), n) for n in range(len(OUTPUTS))]
        moved_mask, busy_mask = (1 << STATUS_BUSY) - 1, 1 << STATUS_BUSY
        all_in, all_out = (1 << n_in) - 1, (1 << len(OUTPUTS)) - 1
        got: list[list[int]] = [[] for _ in OUTPUTS]

        holding = 0  # streams with a beat at their port
        for bit, n in in_bits:
            beat = next(sources[n], None)
            if beat is not None:
                ports[n].value = beat
                holding |= bit
        valid = ready = -1  # what the handles hold, unknown before the first write
        offered = 0
        allowed = all_in | all_out << n_in
        cycles = idle = 0
        busy = True
        while True:
            if stalls is not None:
                allowed = stalls.allowed()
            # A beat once offered stays offered until it moves.
            offered = (offered | allowed) & holding
            if offered != valid:
                valid_handle.value = valid = offered
            if allowed >> n_in != ready:
                ready_handle.value = ready = allowed >> n_in
            await edge
            cycles += 1
            status = int(str(status_handle.value), 2)
            moved = status & moved_mask
            if moved:
                idle = 0
                if moved & all_in:
                    for bit, n in in_bits:
                        if moved & bit:
                            offered &= ~bit
                            beat = next(sources[n], None)
                            if beat is None:
                                holding &= ~bit
                            else:
                                ports[n].value = beat
                    if moved & 4:  # `act`
                        self.act_beats += 1
                for bit, n in out_bits:
                    if moved & bit:
                        got[n].append(int(str(outs[n].value), 2))
                        if len(got[n]) > expected[n]:
                            raise StreamError(f"{OUTPUTS[n]}: more than {expected[n]} beats left")
            else:
                idle += 1
                if idle > WATCHDOG:
                    raise StreamError(self._stuck(cycles, holding, got, expected, status))
            busy = bool(status & busy_mask)
            if (
                not holding
                and not busy
                and all(len(g) == e for g, e in zip(got, expected, strict=True))
            ):
                break
        valid_handle.value = 0
        ready_handle.value = 0
        return got, cycles, status

    def _stuck(
        self, cycles: int, holding: int, got: list[list[int]], expected: list[int], status: int
    ) -> str:
        waiting = [name for n, name in enumerate(INPUTS) if holding >> n & 1]
        missing = [
            f"{name} ({len(g)} of {e})"
            for name, g, e in zip(OUTPUTS, got, expected, strict=True)
            if len(g) != e
        ]
        return (
            f"nothing moved for {WATCHDOG} cycles, {cycles} cycles after the start: beats wait at "
            f"{', '.join(waiting) or 'no input'}; incomplete: {', '.join(missing) or 'no output'}; "
            f"busy = {status >> STATUS_BUSY & 1}; {self.act_beats} act beats consumed"
        )

    async def finish(self) -> None:
        """Checks that nothing more leaves the Core; raises StreamError if something does."""
        self.dut.out_ready.value = (1 << len(OUTPUTS)) - 1
        for _ in range(QUIET):
            await FallingEdge(self.dut.clk)
            moved = int(str(self.dut.status.value), 2) & ((1 << STATUS_BUSY) - 1)
            if moved:
                name = OUTPUTS[(moved >> len(INPUTS)).bit_length() - 1]
                raise StreamError(f"{name}: a beat left after everything was done")


def check_widths(dut: Any, config: AcceleratorConfig) -> None:
    """Raises StreamError unless the wrapper was built for this configuration."""
    for name, bits in widths(config).items():
        have = len(getattr(dut, f"{name}_beat"))
        if have != bits:
            raise StreamError(f"{name}: the simulator was built for {have} bits, not {bits}")


# Beats and integers ---------------------------------------------------------------------------


def _ints(beats: NDArray[np.uint8]) -> Iterator[int]:
    """Each row of bytes as one integer, the first byte lowest."""
    size = beats.shape[1]
    data = beats.tobytes()
    from_bytes = int.from_bytes
    for start in range(0, len(data), size):
        yield from_bytes(data[start : start + size], "little")


def _acc_bytes(values: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Accumulator rows as bytes: two's complement of `bits`, column 0 lowest."""
    count, cols = values.shape
    split = np.ascontiguousarray(values, "<i8").view(np.uint8).reshape(count, cols, 8)
    return np.ascontiguousarray(split[:, :, : bits // 8]).reshape(count, -1)


def _rows(words: list[int], cols: int, bits: int) -> NDArray[np.int64]:
    """Words of `cols` signed values each, as int64 [n, cols]."""
    size = bits // 8
    data = b"".join(word.to_bytes(cols * size, "little") for word in words)
    raw = np.frombuffer(data, np.uint8).reshape(-1, cols, size)
    wide = np.zeros((*raw.shape[:2], 8), np.uint8)
    wide[:, :, 8 - size :] = raw  # at the top, so that the shift down extends the sign
    return wide.view("<i8")[:, :, 0].astype(np.int64) >> np.int64(64 - bits)
