"""A small report and timeline, made by hand: what the views of a report are tested with."""

from typing import Any

__all__ = ["sample_events", "sample_report"]

#: Product: title, shapes, dataflow, edge, stationary, bytes. Two layers of 320, one of 640.
_PRODUCTS = {
    "H": ("H = X.A^T", [[308, 768, 12, 1]], "WS", "left", "X", 240_000),
    "Y": ("Y = X.W^T", [[308, 768, 320, 2], [308, 768, 640, 1]], "WS", "left", "W", 1_500_000),
    "term": ("Y += H.B^T", [[308, 4, 320, 2], [308, 4, 640, 1]], "OS", "-", "-", 410_000),
    "dH": ("dH = dY.B", [[308, 320, 4, 2], [308, 640, 4, 1]], "WS", "left", "dY", 400_000),
    "dB": ("dB = dY^T.H", [[320, 308, 4, 2], [640, 308, 4, 1]], "WS", "top", "dY", 0),
    "dA": ("dA = dH^T.X", [[12, 308, 768, 1]], "WS", "top", "X", 240_000),
    "copies": ("working copies", [], "-", "-", "-", 30_000),
    "update": ("update", [], "-", "-", "-", 60_000),
}
_PEAK = 64 * 64


def _run(name: str, title: str, share: float, config: dict[str, Any]) -> dict[str, Any]:
    """A run whose products reach `share` of the limit, less where they are small."""
    products = []
    for number, (product, entry) in enumerate(_PRODUCTS.items()):
        full, shapes, dataflow, edge, stationary, moved = entry
        macs = sum(m * k * n * count for m, k, n, count in shapes)
        reached = share * (0.97 - 0.05 * number)
        cycles = round(macs / _PEAK / reached) if macs else 300 + 40 * number
        lost = cycles - int(macs / _PEAK)
        waits = {"loads": lost // 2, "post": lost // 4, "array": lost // 8}
        products.append(
            {
                "name": product, "title": full, "shapes": shapes, "dataflow": dataflow,
                "edge": edge, "stationary": stationary, "macs": macs, "limit": macs / _PEAK,
                "cycles": cycles, "share": macs / _PEAK / cycles, "bytes": moved,
                "wait": "loads" if lost else "-", "waits": waits,
            }
        )  # fmt: skip
    macs = sum(p["macs"] for p in products)
    cycles = sum(p["cycles"] for p in products)
    lost = cycles - macs / _PEAK
    waits = {"padding": int(lost / 8), "loads": int(lost / 2), "post": int(lost / 4)}
    waits["other"] = round(lost - sum(waits.values()))
    return {
        "name": name, "title": title, "backend": "model", "config": config, "schedule": "auto",
        "cycles": cycles, "macs": macs, "limit": macs / _PEAK, "share": macs / _PEAK / cycles,
        "bytes_read": 1_900_000, "bytes_written": 980_000, "post_cycles": 60_000,
        "waits": waits, "products": products,
        "images": [], "notes": [],
    }  # fmt: skip


def sample_report() -> dict[str, Any]:
    """Three runs, a peer, and a title that HTML and ASCII must take with care."""
    runs = [
        _run("systolora", "systolora", 0.94, {}),
        _run("textbook-ws", "textbook WS", 0.47, {"segments": 1}),
        _run("best-of-ws-os", "best of WS and OS", 0.74, {"segments": 1}),
    ]
    runs[1]["images"] = ["B^T"]
    runs[2]["notes"] = ["each product with the better of two dataflows"]
    layers = [
        {"name": "down.to_k", "input": "text", "rows": 308, "d": 768, "k": 320, "dx": False,
         "count": 2},
        {"name": "mid.to_v", "input": "text", "rows": 308, "d": 768, "k": 640, "dx": False,
         "count": 1},
    ]  # fmt: skip
    ours = runs[0]["cycles"]
    return {
        "format": "systolora-perf 1",
        "scope": "adapted layers, one training step: forward, backward, update",
        "workload": {
            "name": "sample-kv", "title": "Sample K & V <of three layers> \u00b7 77 tokens",
            "source": "made by hand", "layers": layers,
        },
        "rank": 4, "batch": 4, "bits": 8, "optimizer": "sgd",
        "config": {
            "rows": 64, "cols": 64, "segments": 4, "int16": True, "acc_depth": 1024,
            "bus_bits": 512, "channels": 1, "address_bits": 40, "act_bytes": 524288,
            "wgt_bytes": 262144, "outstanding": 64,
        },
        "digest": "d4c312825042", "memory": {"bus_bits": 512, "channels": 1, "latency": 40},
        "versions": {"systolora": "0.1.0", "numpy": "2.4.6"},
        "runs": runs,
        "peers": [
            {
                "name": "SCALE-Sim WS", "cycles": 150_000, "macs": runs[0]["macs"],
                "share": runs[0]["macs"] / _PEAK / 150_000,
                "products": [{"name": "Y", "cycles": 110_000}, {"name": "dA", "cycles": 9_000}],
                "source": "SCALE-Sim 3.0.0, stall-free",
            }
        ],
        "speedups": {run["name"]: run["cycles"] / ours for run in runs[1:]},
        "step_share": {
            "adapted_macs": runs[0]["macs"], "whole_macs": 250 * runs[0]["macs"], "share": 1 / 250,
            "source": "counted layer by layer", "step_speedup_bound": 1 / (1 - 1 / 250),
        },
        "notes": ["one embedding serves all layers"],
    }  # fmt: skip


def sample_events(blocks: int) -> list[dict[str, Any]]:
    """Loads that overlap, tiles, post-processing and bus transfers: 5 events a block."""
    events = []
    for block in range(blocks):
        product = ("Y", "term", "dB", "update")[block % 4]
        name, start = f"{product} layer{block % 3}", 320 * block
        args = {"descriptor": 3 * block, "bytes": 4096}
        for track, begin, long in (
            ("LOAD", 0, 500), ("read bus", 40, 64), ("array", 110, 290), ("POST", 300, 250),
            ("write bus", 420, 128),
        ):  # fmt: skip
            events.append(
                {"track": track, "name": name, "start": start + begin,
                 "end": start + begin + long, "args": args if track == "LOAD" else {}}
            )  # fmt: skip
    return events
