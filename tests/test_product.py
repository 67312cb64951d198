"""Bare products: against plain big integers, in files, and what is refused."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import big_integers as ref
from file_changes import Tensors, drop, put, say
from systolora.cli import main
from systolora_sim import calibrate
from systolora_sim.golden import run_layer
from systolora_sim.layer import Layer, LayerError
from systolora_sim.layerfile import LayerFileError, write_layer, write_result
from systolora_sim.numerics import ONE, Scale
from systolora_sim.product import KINDS, Product, run_product_golden
from systolora_sim.productfile import is_product, load_product, write_product

SEED = 1213
M, K, N = 5, 7, 3
S_A, S_B = Scale(40000, -6), Scale(50001, -9)


def shapes(kind: str, m: int = M, k: int = K, n: int = N) -> dict[str, tuple[int, int]]:
    sizes = {"M": m, "K": k, "N": n}
    return {
        name: (sizes[axes[0]], sizes[axes[1]]) for name, axes in Product.AXES[kind].items()
    }  # fmt: skip


def random_product(
    kind: str,
    a_bits: int = 8,
    b_bits: int = 8,
    size: tuple[int, int, int] = (M, K, N),
    **fields: Any,
) -> Product:
    rng = np.random.default_rng([SEED, *size])
    operands = {}
    for (name, shape), bits in zip(shapes(kind, *size).items(), (a_bits, b_bits), strict=True):
        dtype = np.int8 if bits == 8 else np.int16
        info = np.iinfo(dtype)
        operands[name] = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return Product(name="test", kind=kind, **operands, scales={"a": S_A, "b": S_B}, **fields)


def check_against_reference(product: Product) -> set[str]:
    """Section 5's main product with nested loops over Python integers; returns the sticky bits."""
    a, b = product.a.tolist(), product.b.tolist()
    left = ref.transpose(a) if product.kind == "tn" else a
    right = ref.transpose(b) if product.kind == "nt" else b
    narrow = product.a.dtype == product.b.dtype == np.int8
    bounds = ref.INT32 if narrow else ref.INT48
    sticky: set[str] = set()
    acc = ref.product(left, right)
    for i, row in enumerate(acc):
        for j in range(len(row)):
            row[j] += 0 if product.c is None else int(product.c[i, j])
            assert ref.clamp(row[j], *bounds) == row[j]
            total = row[j] + (0 if product.bias is None else int(product.bias[j]))
            row[j] = ref.clamp(total, *bounds)
            if row[j] != total:
                sticky.add("acc_sat")
    scale = ref.multiply(S_A, S_B)
    words = None
    if product.stochastic:
        words = [
            [ref.word_at(product.seed, product.step, 0x10001, 0, i, j) for j in range(len(row))]
            for i, row in enumerate(acc)
        ]
    bits = product.bits or 8 * product.a.dtype.itemsize
    record = product.amax if product.delayed else 0
    q, q_scale, new_record, clipped = ref.quantized(acc, scale, bits, record, words)
    if clipped and record:
        sticky.add("clip_delayed")
    result = run_product_golden(product)
    assert result.tensors["c"].tolist() == acc
    assert result.tensors["c"].dtype == (np.int32 if narrow else np.int64)
    assert result.tensors["q"].tolist() == q
    assert result.tensors["q"].dtype == (np.int8 if bits == 8 else np.int16)
    assert result.scales == {"c": scale, "q": q_scale}
    assert result.amax == ({"q": new_record} if product.delayed else {})
    assert result.sticky == sticky
    return sticky


# What it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", list(itertools.product((8, 16), repeat=2)))
def test_every_kind_and_width(kind, widths):
    for size in ((M, K, N), (1, 1, 1), (1, 9, 4), (6, 1, 2)):
        product = random_product(kind, *widths, size=size)
        assert (product.m, product.k, product.n) == size
        check_against_reference(product)
        check_against_reference(replace(product, bits=24 - widths[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", [False, True])
def test_sums_and_bias_are_added(kind, wide):
    rng = np.random.default_rng(SEED)
    limit = (1 << (46 if wide else 30)) - 1
    for dtype in (np.int32, np.int64):
        c = rng.integers(-min(limit, (1 << 31) - 1), min(limit, (1 << 31) - 1), (M, N)).astype(
            dtype
        )
        if dtype == np.int64:
            c[0, 0], c[1, 1] = limit, -limit
        product = random_product(kind, 16 if wide else 8, c=c)
        assert check_against_reference(product) == set()
        bias = np.array([(1 << 31) - 1, -(1 << 31), 7], np.int32)
        sticky = check_against_reference(replace(product, bias=bias))
        assert ("acc_sat" in sticky) == (not wide)  # 48 bits have room for it


def test_modes_of_q():
    product = random_product("nn", stochastic=True, seed=-3, step=4)
    check_against_reference(product)
    first = run_product_golden(replace(product, delayed=True))
    assert first.amax == {"q": int(np.abs(first.tensors["c"]).max())}
    for factor, sticky in ((0.5, {"clip_delayed"}), (2.0, set())):
        record = int(first.amax["q"] * factor)
        assert check_against_reference(replace(product, delayed=True, amax=record)) == sticky
    for changed in (replace(product, seed=1), replace(product, step=5)):
        other = run_product_golden(changed).tensors
        assert not np.array_equal(other["q"], run_product_golden(product).tensors["q"])


def test_zeros():
    product = random_product("nt", delayed=True, amax=99)
    result = run_product_golden(replace(product, a=np.zeros_like(product.a)))
    assert not result.tensors["c"].any() and not result.tensors["q"].any()
    assert result.amax == {"q": 99}


def test_a_frozen_layer_is_two_products():
    rng = np.random.default_rng(SEED)
    x, w, dy = (
        rng.integers(-127, 128, shape).astype(np.int8) for shape in ((M, K), (N, K), (M, N))
    )
    scales = {"x": S_A, "weight": S_B, "dy": ONE}
    bias = np.array([100, -5000, 3], np.int32)
    stochastic = frozenset({"Y"})
    layer = run_layer(
        Layer(
            name="layer", x=x, weight=w, dy=dy, scales=scales, bias=bias, want_dx=True, seed=8,
            stochastic=stochastic,
        )
    )  # fmt: skip
    common: dict[str, Any] = {"name": "product", "seed": 8}
    y = run_product_golden(
        Product(
            kind="nt", a=x, b=w, bias=bias, scales={"a": S_A, "b": S_B}, stochastic=True, **common
        )
    )
    dx = run_product_golden(Product(kind="nn", a=dy, b=w, scales={"a": ONE, "b": S_B}, **common))
    assert np.array_equal(layer.tensors["Y_acc"], y.tensors["c"])
    for name, result in (("Y", y), ("dX", dx)):
        assert np.array_equal(layer.tensors[name], result.tensors["q"])
        assert layer.scales[name] == result.scales["q"]


def test_the_longest_reduction_and_what_may_be_added_to_it():
    depth = 131071
    low = np.full((1, depth), -128, np.int8)
    product = Product(name="long", kind="nt", a=low, b=low, scales={"a": ONE, "b": ONE})
    total = depth << 14
    assert run_product_golden(product).tensors["c"].tolist() == [[total]]
    room = (1 << 31) - 1 - total
    full = replace(product, c=np.array([[room]], np.int32))
    assert run_product_golden(full).tensors["c"].tolist() == [[(1 << 31) - 1]]
    with pytest.raises(LayerError) as caught:
        replace(product, c=np.array([[-room - 1]], np.int32))
    assert str(caught.value) == (
        f"c: |c| up to {room + 1}: must be at most {room}, so that sums of K = {depth} products "
        "stay within 32 bits"
    )
    assert room == 16383


# Files ----------------------------------------------------------------------------------------


def integer_file(kind: str = "nn") -> Tensors:
    product = random_product(kind)
    return {
        "a": product.a,
        "b": product.b,
        "a.scale": np.array(S_A, np.int32),
        "b.scale": np.array(S_B, np.int32),
    }


def saved(path: Path, tensors: Tensors, metadata: dict[str, str]) -> Path:
    """Written by the library, not by this package."""
    save_file(tensors, path, metadata)
    return path


def same(one: Product, other: Product) -> bool:
    for name in one.__dataclass_fields__:
        mine, theirs = getattr(one, name), getattr(other, name)
        if isinstance(mine, np.ndarray):
            if mine.dtype != theirs.dtype or not np.array_equal(mine, theirs):
                return False
        elif name != "name" and mine != theirs:
            return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path, kind):
    for product in (
        random_product(kind, 16, 8),
        random_product(
            kind,
            c=np.arange(M * N).reshape(M, N).astype(np.int32),
            bias=np.arange(N).astype(np.int32),
            delayed=True,
            stochastic=True,
            bits=16,
            amax=5,
            seed=-1,
            step=2,
        ),
    ):
        write_product(tmp_path / "a", product, {"about": "a test"})
        assert is_product(tmp_path / "a")
        assert same(load_product(tmp_path / "a"), product)
        with safe_open(tmp_path / "a", "np") as file:
            assert file.metadata()["about"] == "a test"


def test_floats_are_quantized(tmp_path):
    rng = np.random.default_rng(SEED)
    reals = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes("tn").items()}
    for metadata, bits in (({}, (8, 8)), ({"bits": "16"}, (16, 16)), ({"bits.b": "16"}, (8, 16))):
        product = load_product(saved(tmp_path / "a", reals, {"product": "tn"} | metadata))
        for name, width in zip("ab", bits, strict=True):
            q, scale = calibrate.quantize_float(reals[name], width)
            assert getattr(product, name).dtype == q.dtype
            assert np.array_equal(getattr(product, name), q)
            assert product.scales[name] == scale


def test_run_recognises_the_three_kinds_of_file(tmp_path, capsys):
    path, out, report = (tmp_path / name for name in ("p.safetensors", "out", "json"))
    product = random_product("nt", bits=16)
    write_product(path, product)
    assert main(["run", str(path), "-o", str(out), "--json", str(report)]) == 0
    write_result(tmp_path / "wanted", run_product_golden(product))
    assert out.read_bytes() == (tmp_path / "wanted").read_bytes()
    tensors = load_file(out)
    assert set(tensors) == {"c", "c.scale", "q", "q.scale"}
    content = json.loads(report.read_text(encoding="utf-8"))
    assert (content["product"], content["backend"], content["cycles"]) == ("p", "golden", None)
    (record,) = content["products"]
    assert [record[name] for name in ("name", "formula", "m", "k", "n", "macs")] == [
        "c", "a.b^T", M, K, N, M * K * N,
    ]  # fmt: skip

    # The sums of one run are added in the next.
    write_product(path, replace(product, c=tensors["c"]))
    assert main(["run", str(path), "-o", str(out)]) == 0
    assert np.array_equal(load_file(out)["c"], 2 * tensors["c"])

    layer = Layer(
        name="f", x=product.a, weight=product.b, scales={"x": S_A, "weight": S_B}, bits={"Y": 16}
    )
    write_layer(path, layer)
    assert main(["run", str(path), "-o", str(out), "--json", str(report)]) == 0
    got = load_file(out)
    assert np.array_equal(got["Y_acc"], tensors["c"]) and np.array_equal(got["Y"], tensors["q"])
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["layer"] == "p"
    assert [(r["name"], r["formula"], r["dataflow"]) for r in content["products"]] == [
        ("Y", "X.W^T", "WS")
    ]
    assert capsys.readouterr() == ("", "")


def test_a_product_cannot_be_trained(tmp_path, capsys):
    write_product(tmp_path / "p", random_product("nt"))
    command = ["run", str(tmp_path / "p"), "-o", str(tmp_path / "out"), "--steps", "2"]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"systolora: error: {tmp_path / 'p'}: holds a bare product: there is nothing to train\n"
    )
    frozen = Layer(
        name="f", x=np.ones((2, 3), np.int8), weight=np.ones((4, 3), np.int8),
        scales={"x": S_A, "weight": S_B},
    )  # fmt: skip
    write_layer(tmp_path / "p", frozen)
    assert main([*command, "--optimizer", "sgd", "--lr", "1"]) == 2
    assert capsys.readouterr().err == (
        f"systolora: error: {tmp_path / 'p'}: lora_A: missing tensor: a frozen layer "
        "has nothing to train\n"
    )


# Refusing -------------------------------------------------------------------------------------

i32 = np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([say("product", "tt")], "metadata product = 'tt': must be nt or nn or tn"),
        (
            [lambda _, metadata: metadata.pop("product")],
            "metadata product: missing: must be one of nt, nn, tn",
        ),
        ([drop("a")], "a: missing tensor"),
        ([drop("b.scale")], "b.scale: missing tensor"),
        ([put("x", np.zeros(1, i32))], "x: unknown tensor"),
        (
            [put("a", np.zeros((M, K), i32))],
            "a: dtype I32: must be I8 or I16 or F32 or F16 or BF16",
        ),
        ([put("b", np.zeros(K, np.int8))], "b: rank 1: must be 2, [K, N]"),
        (
            [put("b", np.zeros((N, K), np.int8))],
            "b: shape (3, 7): must be [K, N] with K = 7 as in a",
        ),
        ([put("a", np.zeros((0, K), np.int8))], "a: shape (0, 7): M must not be 0"),
        (
            [put("a", np.zeros((1, 131072), np.int8))],
            "a: product 'bad' has K = 131072: a reduction must be shorter than 131072",
        ),
        ([put("a.scale", np.zeros(2, i32))], "a.scale: the scale of a must not be zero"),
        (
            [put("b.scale", np.array([1, 0], i32))],
            "b.scale: scale m = 1: must be 0 or from 32768 to 65535",
        ),
        ([put("bias", np.zeros(M, i32))], "bias: shape (5,): must be [N] with N = 3 as in b"),
        ([put("bias", np.zeros(N, np.int8))], "bias: dtype I8: must be I32"),
        ([put("c", np.zeros((N, M), i32))], "c: shape (3, 5): must be [M, N] = [5, 3]"),
        ([put("c", np.zeros((M, N), np.int16))], "c: dtype I16: must be I32 or I64"),
        (
            [put("c", np.full((M, N), 1 << 31))],
            "c: |c| up to 2147483648: must be at most 2147368959, so that sums of K = 7 products "
            "stay within 32 bits",
        ),
        (
            [put("c", np.zeros((M, N), i32)), put("c.scale", np.array(ONE, i32))],
            "c.scale: [32768, 0]: must be [61036, -15], a's scale times b's",
        ),
        ([put("c.scale", np.array(ONE, i32))], "c.scale: there is no c"),
        ([say("delayed", "c")], "metadata delayed: unknown tensor 'c': must be among q"),
        ([say("bits.c", "8")], "metadata bits.c: unknown tensor 'c': must be among a, b, q"),
        ([say("bits.a", "16")], "metadata bits.a = 16: a is stored as int8"),
        ([say("bits.q", "4")], "metadata bits.q = '4': must be 8 or 16"),
        ([put("q.amax", np.array([3]))], "q.amax: q must be in `delayed` to have a record"),
        (
            [say("delayed", "q"), put("q.amax", np.array([-3]))],
            "q.amax: -3: must be from 0 to 140737488355328",
        ),
        ([put("seed", np.zeros(1))], "seed: dtype F64: must be I32"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, changes, message):
    tensors, metadata = integer_file(), {"product": "nn"}
    for change in changes:
        change(tensors, metadata)
    path = saved(tmp_path / "bad.safetensors", tensors, metadata)
    assert is_product(path) or not {"a", "b"} <= set(tensors) or "x" in tensors
    with pytest.raises(LayerFileError) as caught:
        load_product(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tt"}, "product = 'tt': must be one of nt, nn, tn"),
        ({"a": np.zeros((M, K))}, "a: dtype float64: must be int8 or int16"),
        ({"b": np.zeros((K, N, 1), np.int8)}, "b: rank 3: must be 2, [K, N]"),
        ({"bias": np.zeros(N)}, "bias: dtype float64: must be int32"),
        ({"c": np.zeros((M, N))}, "c: dtype float64: must be int32 or int64"),
        ({"scales": {"a": ONE}}, "scales: must be those of a, b"),
        ({"bits": 12}, "bits.q: 12: must be 8 or 16"),
        ({"seed": 1 << 31}, "seed: 2147483648: must be from -2147483648 to 2147483647"),
        ({"step": 0.5}, "step: 0.5: must be an integer"),
    ],
)
def test_bad_products_are_refused(changes, message):
    with pytest.raises(LayerError) as caught:
        replace(random_product("nn"), **changes)
    assert str(caught.value) == message


def test_unreadable_files(tmp_path):
    assert not is_product(tmp_path / "none") and not is_product(tmp_path)
    for content in (b"", b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 99):
        (tmp_path / "f").write_bytes(content)
        assert not is_product(tmp_path / "f")
    with pytest.raises(LayerFileError, match="cannot be read"):
        load_product(tmp_path / "none")
