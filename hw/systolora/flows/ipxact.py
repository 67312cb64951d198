"""`systolora_axi` as an IP-XACT component (IEEE 1685-2014)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from systolora.config import AcceleratorConfig
from systolora.contract import REGISTER_ADDRESS_BITS, REGISTER_BITS, REGISTERS, Register
from systolora.flows.fusesoc import vlnv
from systolora.register_map import MappedField, mapped_fields
from systolora.wrapper import WRAPPER

__all__ = ["NAMESPACE", "component"]

NAMESPACE = "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"
_SCHEMA = "http://www.w3.org/2001/XMLSchema-instance"

#: Bus definitions: vendor, library, name, version; `_rtl` is the abstraction.
_AXI4 = ("amba.com", "AMBA4", "AXI4", "r0p0_0")
_AXI4_LITE = ("amba.com", "AMBA4", "AXI4-Lite", "r0p0_0")
#: The standards have none for these; packagers know Xilinx's.
_CLOCK = ("xilinx.com", "signal", "clock", "1.0")
_RESET = ("xilinx.com", "signal", "reset", "1.0")
_INTERRUPT = ("xilinx.com", "signal", "interrupt", "1.0")

_ACCESS = {"ro": "read-only", "rw": "read-write", "w1c": "read-write", "wo": "write-only"}
_MEMORY_MAP, _RTL, _SDC = "registers", "rtl", "constraints"


class _Element:
    """An element under construction: `child` makes one below it and returns that."""

    def __init__(self, element: ElementTree.Element) -> None:
        self.element = element

    def child(self, tag: str, text: object = None, **attributes: str) -> "_Element":
        made = ElementTree.SubElement(self.element, f"ipxact:{tag}", attributes)
        if text is not None:
            made.text = str(text)
        return _Element(made)


def _bus(
    parent: _Element,
    name: str,
    definition: Sequence[str],
    wires: Iterable[tuple[str, str]],
    parameters: Mapping[str, str] | None = None,
) -> _Element:
    """A bus interface; wires are pairs of logical and physical names. Returns where its role goes.

    The role (master or slave) comes before the parameters, so the caller fills it in.
    """
    bus = parent.child("busInterface")
    bus.child("name", name)
    keys = ("vendor", "library", "name", "version")
    bus.child("busType", **dict(zip(keys, definition, strict=True)))
    abstraction = (*definition[:2], f"{definition[2]}_rtl", definition[3])
    kind = bus.child("abstractionTypes").child("abstractionType")
    kind.child("abstractionRef", **dict(zip(keys, abstraction, strict=True)))
    maps = kind.child("portMaps")
    for logical, physical in wires:
        pair = maps.child("portMap")
        pair.child("logicalPort").child("name", logical)
        pair.child("physicalPort").child("name", physical)
    role = bus.child("slave" if name in ("s_axil", "aclk", "aresetn") else "master")
    if parameters:
        group = bus.child("parameters")
        for key, value in parameters.items():
            one = group.child("parameter", parameterId=f"{name}_{key}", resolve="immediate")
            one.child("name", key)
            one.child("value", value)
    return role


def _axi(ports: Sequence[Mapping[str, Any]], bus: str) -> list[tuple[str, str]]:
    """The ports of a bus have AMBA's names in lower case behind the name of the bus."""
    names = (port["name"] for port in ports)
    return [(n[len(bus) + 1 :].upper(), n) for n in names if n.startswith(f"{bus}_")]


def _field(parent: _Element, field: MappedField) -> None:
    one = parent.child("field")
    one.child("name", field.name)
    one.child("description", field.doc)
    one.child("bitOffset", field.position)
    one.child("resets").child("reset").child("value", f"'h{field.reset:x}")
    one.child("bitWidth", field.width)
    one.child("volatile", "false" if field.fixed or field.access == "rw" else "true")
    one.child("access", _ACCESS[field.access])
    if field.values is not None:
        values = one.child("enumeratedValues")
        for member in field.values:
            value = values.child("enumeratedValue")
            value.child("name", member.name)
            value.child("description", member.doc)
            value.child("value", int(member))
    if field.access == "w1c":
        one.child("modifiedWriteValue", "oneToClear")


def _register(parent: _Element, register: Register, config: AcceleratorConfig) -> None:
    one = parent.child("register")
    one.child("name", register.name)
    one.child("description", register.doc)
    one.child("addressOffset", f"'h{register.offset:x}")
    one.child("size", REGISTER_BITS)
    one.child("access", _ACCESS[register.access])
    for field in mapped_fields(register, config):
        _field(one, field)


def _buses(
    parent: _Element, config: AcceleratorConfig, ports: Sequence[Mapping[str, Any]]
) -> list[str]:
    """All bus interfaces; returns the names of the masters."""
    masters = [f"m_axi_{n}" for n in range(config.channels)] if config.channels > 1 else ["m_axi"]
    group = parent.child("busInterfaces")
    role = _bus(group, "s_axil", _AXI4_LITE, _axi(ports, "s_axil"))
    role.child("memoryMapRef", memoryMapRef=_MEMORY_MAP)
    for name in masters:
        role = _bus(group, name, _AXI4, _axi(ports, name))
        role.child("addressSpaceRef", addressSpaceRef=name)
    _bus(group, "irq", _INTERRUPT, [("INTERRUPT", "irq")], {"SENSITIVITY": "LEVEL_HIGH"})
    _bus(
        group, "aclk", _CLOCK, [("CLK", "aclk")],
        {"ASSOCIATED_BUSIF": ":".join(("s_axil", *masters)), "ASSOCIATED_RESET": "aresetn"},
    )  # fmt: skip
    _bus(group, "aresetn", _RESET, [("RST", "aresetn")], {"POLARITY": "ACTIVE_LOW"})
    spaces = parent.child("addressSpaces")
    for name in masters:
        space = spaces.child("addressSpace")
        space.child("name", name)
        # Of several channels each has its part of the one memory
        space.child("range", f"'h{(1 << config.address_bits) // config.channels:x}")
        space.child("width", config.bus_bits)
        space.child("addressUnitBits", 8)
    return masters


def _model(parent: _Element, ports: Sequence[Mapping[str, Any]]) -> None:
    model = parent.child("model")
    view = model.child("views").child("view")
    view.child("name", _RTL)
    view.child("envIdentifier", "Verilog::")
    view.child("componentInstantiationRef", _RTL)
    one = model.child("instantiations").child("componentInstantiation")
    one.child("name", _RTL)
    one.child("language", "Verilog")
    one.child("moduleName", WRAPPER)
    for name in (_RTL, _SDC):
        one.child("fileSetRef").child("localName", name)
    declared = [("aclk", "input", 1), ("aresetn", "input", 1)]
    declared += [(p["name"], p["direction"], p["width"]) for p in ports if "role" not in p]
    group = model.child("ports")
    for name, direction, width in declared:
        port = group.child("port")
        port.child("name", name)
        wire = port.child("wire")
        wire.child("direction", direction.removesuffix("put"))
        if width > 1:
            vector = wire.child("vectors").child("vector")
            vector.child("left", width - 1)
            vector.child("right", 0)


def component(
    config: AcceleratorConfig,
    version: str,
    ports: Sequence[Mapping[str, Any]],
    rtl: Sequence[str],
    sdc: str,
) -> str:
    """The XML of the component: buses, register map, ports and files of a configuration.

    Parameters
    ----------
    ports : of the top, as the manifest describes them
    rtl, sdc : names of the files, beside this one
    """
    root = ElementTree.Element(
        "ipxact:component",
        {
            "xmlns:ipxact": NAMESPACE,
            "xmlns:xsi": _SCHEMA,
            "xsi:schemaLocation": f"{NAMESPACE} {NAMESPACE}/index.xsd",
        },
    )
    top = _Element(root)
    keys = ("vendor", "library", "name", "version")
    for key, value in zip(keys, vlnv(config.digest, version), strict=True):
        top.child(key, value)
    _buses(top, config, ports)
    memory_map = top.child("memoryMaps").child("memoryMap")
    memory_map.child("name", _MEMORY_MAP)
    block = memory_map.child("addressBlock")
    block.child("name", "systolora")
    block.child("baseAddress", 0)
    block.child("range", 1 << REGISTER_ADDRESS_BITS)
    block.child("width", REGISTER_BITS)
    block.child("usage", "register")
    for register in REGISTERS.values():
        _register(block, register, config)
    memory_map.child("addressUnitBits", 8)
    _model(top, ports)
    sets = top.child("fileSets")
    for name, files, kind in ((_RTL, rtl, "verilogSource"), (_SDC, [sdc], "SDC")):
        group = sets.child("fileSet")
        group.child("name", name)
        for file in files:
            one = group.child("file")
            one.child("name", file)
            one.child("fileType", kind)
    top.child("description", f"systolora {version}, configuration {config.digest}. Generated.")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'
