# amaranth: UnusedElaboratable=no
"""What the RTL's constructors refuse, and what emission needs of every component."""

import importlib
import inspect
import pkgutil

import pytest
from amaranth.hdl import Module, Shape, signed
from amaranth.lib import stream, wiring

import systolora.rtl
from systolora.config import preset
from systolora.contract import SCALE
from systolora.rtl.accumulator import AccumulatorLane
from systolora.rtl.core import Core
from systolora.rtl.flow import link
from systolora.rtl.pe import PE
from systolora.rtl.types import ScaleLayout


def test_pe_refuses_narrow_sums():
    with pytest.raises(ValueError, match="psum_bits must be at least twice operand_bits, not 16"):
        PE(operand_bits=9, psum_bits=16)


def test_lane_refuses_narrow_accumulators():
    with pytest.raises(ValueError, match="acc_bits must be at least psum_bits = 32, not 24"):
        AccumulatorLane(acc_bits=24, psum_bits=32, depth=64)


def test_link_compares_shapes():
    """Amaranth would connect a signed payload to an unsigned one."""
    ports = [stream.Signature(shape).create() for shape in (signed(8), 8, signed(8))]
    with pytest.raises(TypeError, match="streams of different payloads"):
        link(Module(), ports[0], ports[1])
    link(Module(), ports[0], ports[2])


def components() -> list[type]:
    found = []
    for info in pkgutil.iter_modules(systolora.rtl.__path__):
        module = importlib.import_module(f"systolora.rtl.{info.name}")
        found += [
            item
            for item in vars(module).values()
            if inspect.isclass(item)
            and issubclass(item, wiring.Component)
            and item.__module__ == module.__name__
        ]
    return found


def test_every_component_has_a_design_key():
    """Emission tells designs apart by it; without one, two parametrizations could be merged."""
    found = components()
    assert Core in found and len(found) > 10
    for item in found:
        assert "design_key" in inspect.getsource(item), item.__name__


def test_core_states_its_latencies():
    """act_to_accumulator is what test_rtl_tile_engine measures; the others are the blocks'."""
    latencies = Core(preset("tiny")).latencies  # the Core itself is never elaborated here
    assert latencies == {
        "act_to_accumulator": 4 + 2 + 3,
        "row_to_output_queue": 10,
        "rescale": 5,
        "scale_unit_max": 18,
    }
    fused = preset("tiny").with_fields(fused_quantize=True)
    assert Core(fused).latencies == latencies | {"quantized_row_to_output_queue": 15}


def test_scale_layout_is_the_contract():
    """The RTL's Scale has the positions that software packs."""
    fields = ScaleLayout.as_shape()
    got = [(name, field.offset, Shape.cast(field.shape)) for name, field in fields]
    expected, offset = [], 0
    for field in SCALE:
        expected.append((field.name, offset, Shape(field.width, field.signed)))
        offset += field.width
    assert got == expected
