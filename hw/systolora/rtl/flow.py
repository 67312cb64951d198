"""Connecting streams, with the payload's shape checked."""

from typing import Any

from amaranth.hdl import Module

__all__ = ["link"]


def link(m: Module, source: Any, sink: Any) -> None:
    """Connects a stream from `source` to `sink`; both are the ports as their owners see them.

    Amaranth's `connect` compares widths only: a signed payload would pass for an unsigned one,
    and a struct for another with its fields exchanged.

    Raises
    ------
    TypeError
        If the payloads' shapes differ.
    """
    shapes = [port.signature.members["payload"].shape for port in (source, sink)]
    if shapes[0] != shapes[1]:
        raise TypeError(f"streams of different payloads: {shapes[0]!r} and {shapes[1]!r}")
    m.d.comb += [
        sink.payload.eq(source.payload),
        sink.valid.eq(source.valid),
        source.ready.eq(sink.ready),
    ]
