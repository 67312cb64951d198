"""Brings operands into the buffers: which tile lies where, and when it is loaded.

The whole program is known, so a tile stays until its place is needed by one that is used earlier.
Tiles are loaded ahead of the EXECs that need them, as far ahead as the array has work for the time
that takes; no tile is replaced that an EXEC until then still reads.
"""

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from systolora.config import AcceleratorConfig
from systolora.contract import Buffer, Kind
from systolora_sim.memory_map import Area
from systolora_sim.tokens import Cells
from systolora_sim.work import Control, Exec, Item, Op, Post, Rows, Tile

__all__ = ["AHEAD", "stage"]

#: Cycles of array work between an EXEC and the last one whose operands are loaded before it, and
#: how many EXECs that may be.
AHEAD = 8192, 24
#: Array work since a tile was read after which a load may take its place without waiting for it.
RECENT_CYCLES = 2048

#: A tile and the last item that wrote any of its elements.
Version = tuple[Tile, int]


@dataclass
class _Resident:
    version: Version
    rows: Rows
    last_use: int  # number of an EXEC


class _Space:
    """One buffer's entries: first fit among what is least missed."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._residents: list[_Resident] = []  # by place
        self._by_version: dict[Version, _Resident] = {}

    def place(
        self, count: int, next_use: "dict[Version, deque[int]]", until: int, recent: int
    ) -> Rows | None:
        """Room for `count` entries, emptied; None if EXECs up to `until` read all of it.

        Prefers what was not read by an EXEC from `recent` on, for which the load would wait; then
        what is used again last, then what was read the longest ago.
        """
        best: tuple[bool, float, int, int] | None = None
        residents = self._residents
        starts = [0] + [each.rows.end for each in residents]
        for index, start in enumerate(starts):
            end = start + count
            if end > self.entries:
                break
            soonest, latest = float("inf"), -1
            for other in range(index, len(residents)):
                each = residents[other]
                if each.rows.start >= end:
                    break
                uses = next_use[each.version]
                if uses and uses[0] < soonest:
                    soonest = uses[0]
                latest = max(latest, each.last_use)
            if soonest <= until:
                continue
            cost = (latest >= recent, -soonest, latest, start)
            if best is None or cost < best:
                best = cost
        if best is None:
            return None
        rows = Rows(best[3], best[3] + count)
        kept = []
        for each in residents:
            if each.rows.end <= rows.start or each.rows.start >= rows.end:
                kept.append(each)
            else:
                del self._by_version[each.version]
        self._residents = kept
        return rows

    def add(self, resident: _Resident) -> None:
        bisect.insort(self._residents, resident, key=lambda each: each.rows.start)
        self._by_version[resident.version] = resident

    def find(self, version: Version) -> _Resident | None:
        return self._by_version.get(version)


class _Stager:
    def __init__(
        self, config: AcceleratorConfig, items: Sequence[Item], ahead: tuple[int, int]
    ) -> None:
        self.config, self.items, self.ahead = config, items, ahead
        self.ops: list[Op] = []
        self.spaces = {
            Buffer.ACT: _Space(config.act_entries),
            Buffer.WGT: _Space(config.wgt_entries),
        }
        self.execs: list[Exec] = []
        self.versions: list[tuple[Version, Version]] = []
        self.next_use: dict[Version, deque[int]] = {}
        # The first EXEC after which there is less than RECENT_CYCLES of work so far, and how much.
        self._recent, self._since = 0, 0
        self._index_uses()

    def _index_uses(self) -> None:
        """Finds the EXECs that use each version of each tile."""
        written = Cells(self.config)
        for position, item in enumerate(self.items):
            if isinstance(item, Post) and item.writes is not None:
                written.write(item.writes, position)
            elif isinstance(item, Exec):
                pair = tuple((tile, written.latest(tile.area)) for tile in (item.act, item.wgt))
                for version in pair:
                    self.next_use.setdefault(version, deque()).append(len(self.execs))
                self.versions.append((pair[0], pair[1]))
                self.execs.append(item)

    def run(self) -> list[Op]:
        number = 0
        for position, item in enumerate(self.items):
            if isinstance(item, Control):
                self.ops.append(Op(Kind.CONTROL, {"action": int(item.action)}))
            elif isinstance(item, Post):
                self.ops.append(
                    Op(
                        Kind.POST,
                        item.fields,
                        acc=item.acc,
                        reads=item.reads,
                        writes=item.writes,
                        label=item.label,
                    )
                )
            else:
                self._load_ahead(number, position)
                self._exec(number, item)
                number += 1
        return self.ops

    def _load_ahead(self, number: int, position: int) -> None:
        """Loads what EXEC `number` lacks, and what later ones do as far as there is room."""
        while self._since >= RECENT_CYCLES:
            self._recent += 1
            self._since -= self.execs[self._recent].cycles
        cycles = 0
        for ahead in range(number, min(number + self.ahead[1], len(self.execs))):
            if cycles > self.ahead[0]:
                return
            for version in self.versions[ahead]:
                if not self._load(version, position, ahead):
                    if ahead > number:
                        return
                    raise RuntimeError(f"no room for {version[0]}")
            if ahead > number:
                cycles += self.execs[ahead].cycles

    def _load(self, version: Version, position: int, until: int) -> bool:
        """Makes a tile resident; False if it does not exist yet, or there is no room."""
        tile, writer = version
        space = self.spaces[tile.buffer]
        if space.find(version) is not None:
            return True
        if writer >= position:
            return False
        rows = space.place(tile.entries, self.next_use, until, self._recent)
        if rows is None:
            return False
        space.add(_Resident(version, rows, -1))
        self.ops.append(self._load_op(tile, rows))
        self.ops[-1].label = self.execs[until].label
        return True

    def _load_op(self, tile: Tile, rows: Rows) -> Op:
        area: Area = tile.area
        fields = {
            "buffer": int(tile.buffer),
            "layout": int(tile.layout),
            "rows": area.rows,
            "row_bytes": area.row_bytes,
            "base": rows.start,
            "row_step": tile.row_entries,
            "address": area.address,
            "stride": area.symbol.stride,
        }
        act = tile.buffer == Buffer.ACT
        return Op(
            Kind.LOAD, fields, act=rows if act else None, wgt=None if act else rows, reads=area
        )

    def _exec(self, number: int, item: Exec) -> None:
        config = self.config
        places = []
        for version in self.versions[number]:
            resident = self.spaces[version[0].buffer].find(version)
            assert resident is not None
            resident.last_use = number
            self.next_use[version].popleft()
            places.append(resident.rows)
        if number > 0:
            self._since += item.cycles
        act = places[0].start * config.act_entry_bytes // config.act_unit + item.act_unit
        wgt = places[1].start * config.wgt_entry_bytes // config.wgt_unit + item.wgt_unit
        item.fields |= {"act_base": act, "wgt_base": wgt}
        op = Op(Kind.EXEC, item.fields, act=places[0], wgt=places[1], acc=(item.acc,))
        op.label = item.label
        self.ops.append(op)


def stage(
    config: AcceleratorConfig, items: Sequence[Item], ahead: tuple[int, int] = AHEAD
) -> list[Op]:
    """The items as descriptors, with the loads that their operands need, without tokens.

    ahead : how far before its EXEC a tile may be loaded, as `AHEAD`
    """
    return _Stager(config, items, ahead).run()
