"""A whole training step on a Core: the `StepBackend` of every `CoreDevice`.

Working copies and updates are `device_update`'s, products the compiler's; between them the host
carries tensors and computes nothing. `bench.run.run_training` runs the same backend inside a
simulator.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora_sim.compiler import ProductRecord, compute_layer
from systolora_sim.device_update import (
    UpdateRecord,
    update_on_device,
    working_copy_on_device,
)
from systolora_sim.golden import Master, Optimizer
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.machine import Machine, Order
from systolora_sim.numerics import Scale
from systolora_sim.program import CoreDevice
from systolora_sim.training import TrainingState

__all__ = ["DeviceBackend", "LayerStepRecord", "TrainingJob", "machine_backend"]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Steps to run on a device: `training.train` of that state, steps at least 1."""

    state: TrainingState
    steps: int


@dataclass(kw_only=True)
class LayerStepRecord:
    """What one step of one layer cost, in the order in which it ran.

    step, index : numbers of the step and of the layer; copies : of the masters to their working
    copies; products : the layer's; updates : of the masters.
    """

    step: int
    index: int
    copies: list[UpdateRecord] = field(default_factory=list)
    products: list[ProductRecord] = field(default_factory=list)
    updates: list[UpdateRecord] = field(default_factory=list)

    @property
    def cycles(self) -> int | None:
        """Clock cycles of the parts together, None where time does not exist."""
        total = 0
        for part in (*self.copies, *self.products, *self.updates):
            if part.cycles is None:
                return None
            total += part.cycles
        return total

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LayerStepRecord":
        """The inverse of `to_dict`."""
        return cls(
            step=fields["step"],
            index=fields["index"],
            copies=[UpdateRecord(**each) for each in fields["copies"]],
            products=[ProductRecord(**each) for each in fields["products"]],
            updates=[UpdateRecord(**each) for each in fields["updates"]],
        )


class DeviceBackend:
    """A `training.StepBackend` that computes on a `CoreDevice`.

    Parameters
    ----------
    device : CoreDevice
        Just reset, with nothing queued.
    clear_sticky : coroutine function
        Clears the device's sticky bits, so that what is set after it belongs to what ran after it.

    Attributes
    ----------
    records : list of LayerStepRecord
        One for each step of each layer, in the order in which they ran.

    Raises
    ------
    CompileError
        From its methods, if the configuration cannot compute the layer.
    """

    def __init__(self, device: CoreDevice, clear_sticky: Callable[[], Awaitable[None]]) -> None:
        self.device = device
        self.records: list[LayerStepRecord] = []
        self._clear_sticky = clear_sticky
        self._copies: list[UpdateRecord] = []  # of the step that is about to run

    async def working_copy(
        self, master: Master, bits: int, sticky: set[str]
    ) -> tuple[NDArray[Any], Scale]:
        """See `training.StepBackend`."""
        await self._clear_sticky()
        copy = await working_copy_on_device(
            self.device, master, bits, sticky=sticky, records=self._copies
        )
        return copy.q, copy.scale

    async def forward_backward(self, layer: Layer) -> LayerResult:
        """See `training.StepBackend`."""
        await self._clear_sticky()
        result, products = await compute_layer(self.device, layer)
        self.records.append(
            LayerStepRecord(
                step=layer.step, index=layer.index, copies=self._copies, products=products
            )
        )
        self._copies = []
        return result

    async def update(
        self,
        master: Master,
        gradient: NDArray[Any],
        gradient_scale: Scale,
        optimizer: Optimizer,
        *,
        seed: int,
        step: int,
        sticky: set[str],
    ) -> Master:
        """See `training.StepBackend`."""
        index = master.tensor_id // 2
        last = self.records[-1] if self.records else None
        if last is None or (last.step, last.index) != (step, index):
            self.records.append(LayerStepRecord(step=step, index=index))
        await self._clear_sticky()
        return await update_on_device(
            self.device,
            master,
            gradient,
            gradient_scale,
            optimizer,
            seed=seed,
            step=step,
            sticky=sticky,
            records=self.records[-1].updates,
        )


def machine_backend(config: AcceleratorConfig, order: Order = "tile_first") -> DeviceBackend:
    """A backend on the functional machine, where time does not exist."""
    machine = Machine(config, order)

    async def clear_sticky() -> None:
        machine.sticky.clear()

    return DeviceBackend(machine, clear_sticky)
