"""One bare product in memory, checked, and what it computes: c = a.b and q = Q(c).

Three forms, as operands lie in memory (M, K, N are the logical sizes, K the reduction):

=====  =======  =======  ========
kind   a        b        c
=====  =======  =======  ========
"nt"   [M,K]    [N,K]    a.b^T
"nn"   [M,K]    [K,N]    a.b
"tn"   [K,M]    [K,N]    a^T.b
=====  =======  =======  ========

The sums are those of a layer's main product (numerics section 5): exact, 32 bits wide where both
operands are int8, else 48.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from systolora_sim import numerics
from systolora_sim.golden import exact_product
from systolora_sim.layer import (
    LayerError,
    LayerResult,
    check_bias,
    check_integer,
    check_operand,
)
from systolora_sim.numerics import Scale

__all__ = ["KINDS", "Product", "ProductResult", "run_product_golden"]

KINDS = ("nt", "nn", "tn")

#: tensor_id of q's random words: as Y of layer 0 (numerics section 4).
_WORDS_ID = 0x10000 + 1


@dataclass(kw_only=True)
class Product:
    """Operands and modes of one product.

    Parameters
    ----------
    name : str
        For messages.
    kind : str
        "nt", "nn" or "tn": how the operands lie.
    a, b : int8 or int16 arrays
        Shapes of the kind; each its own width.
    scales : dict
        Scale of `a` and of `b`, not zero.
    c : int32 or int64 array [M,N] or None
        Sums in units of S_a * S_b that are added, exactly.
    bias : int32 array [N] or None
        In units of S_a * S_b; joins in one addition that saturates.
    delayed, stochastic : bool
        The modes in which q is quantized (numerics section 4).
    bits : int or None
        Width of q, 8 or 16; a's if None.
    amax : int
        Record of a delayed q from an earlier run, 0 (none) to 2^47.
    seed, step : int
        Of the random words, signed 32 bits.

    Raises
    ------
    LayerError
        On anything that breaks these rules, a reduction of 131072 or more, or a `c` to which the
        largest sums of that width and reduction could not be added without overflow.
    """

    name: str
    kind: str
    a: NDArray[Any]
    b: NDArray[Any]
    scales: dict[str, Scale]
    c: NDArray[Any] | None = None
    bias: NDArray[np.int32] | None = None
    delayed: bool = False
    stochastic: bool = False
    bits: int | None = None
    amax: int = 0
    seed: int = 0
    step: int = 0

    #: The axes of a and b, by kind.
    AXES: ClassVar[dict[str, dict[str, tuple[str, str]]]] = {
        "nt": {"a": ("M", "K"), "b": ("N", "K")},
        "nn": {"a": ("M", "K"), "b": ("K", "N")},
        "tn": {"a": ("K", "M"), "b": ("K", "N")},
    }

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LayerError(f"product = {self.kind!r}: must be one of {', '.join(KINDS)}")
        self._check_shapes()
        self._check_scales()
        if self.bits not in (None, 8, 16):
            raise LayerError(f"bits.q: {self.bits!r}: must be 8 or 16")
        check_integer("q.amax", self.amax, 0, numerics.V_LIMIT)
        if self.amax and not self.delayed:
            raise LayerError("q.amax: q must be in `delayed` to have a record")
        for name in ("seed", "step"):
            check_integer(name, getattr(self, name), *numerics.int_range(32))
        self._check_sums()

    def _check_shapes(self) -> None:
        known: dict[str, tuple[int, str]] = {}
        for name, axes in self.AXES[self.kind].items():
            owner, tensor = f"product {self.name!r}", getattr(self, name)
            check_operand(owner, name, tensor, axes, ("K",), known)
        check_bias(self.bias, "N", self.n, "b")
        if self.c is not None:
            if self.c.dtype not in (np.int32, np.int64):
                raise LayerError(f"c: dtype {self.c.dtype}: must be int32 or int64")
            if self.c.shape != (self.m, self.n):
                raise LayerError(f"c: shape {self.c.shape}: must be [M, N] = [{self.m}, {self.n}]")

    def _check_scales(self) -> None:
        if set(self.scales) != {"a", "b"}:
            raise LayerError("scales: must be those of a, b")
        for name, scale in self.scales.items():
            try:
                scale.check()
            except ValueError as error:
                raise LayerError(f"{name}.scale: {error}") from None
            if scale.is_zero:
                raise LayerError(f"{name}.scale: the scale of {name} must not be zero")

    def _check_sums(self) -> None:
        """Refuses a `c` with which a sum could overflow (numerics section 9).

        The products count by their widths, not their values: what is refused does not depend on
        data that may change in memory while the program stays.
        """
        if self.c is None:
            return
        sums = self.k << (self.bits_of("a") + self.bits_of("b") - 2)
        room = numerics.int_range(self.acc_bits)[1] - sums
        if numerics.amax(self.c) > room:
            raise LayerError(
                f"c: |c| up to {numerics.amax(self.c)}: must be at most {room}, so that sums of "
                f"K = {self.k} products stay within {self.acc_bits} bits"
            )

    def _size(self, axis: str) -> int:
        for name, axes in self.AXES[self.kind].items():
            if axis in axes:
                return getattr(self, name).shape[axes.index(axis)]
        raise KeyError(axis)

    @property
    def m(self) -> int:
        """M, rows of c."""
        return self._size("M")

    @property
    def k(self) -> int:
        """K, the length of the reduction."""
        return self._size("K")

    @property
    def n(self) -> int:
        """N, columns of c."""
        return self._size("N")

    def bits_of(self, name: str) -> int:
        """Width of a, b or q; q follows a unless `bits` says otherwise."""
        if name == "q":
            return self.bits or self.bits_of("a")
        return 8 * getattr(self, name).dtype.itemsize

    @property
    def acc_bits(self) -> int:
        """Width of the sums: 32 if both operands are int8, else 48."""
        return numerics.acc_bits(self.bits_of("a"), self.bits_of("b"))

    @property
    def acc_scale(self) -> Scale:
        """S_a * S_b, the unit of c and of the bias."""
        return numerics.mul(self.scales["a"], self.scales["b"])


@dataclass(kw_only=True)
class ProductResult(LayerResult):
    """What a product gives, in the fields of a `LayerResult`.

    tensors : `c` [M,N] int32, or int64 where the sums are 48 bits wide; `q` [M,N] int8 or int16.
    scales : of both. amax : of `q` if it is delayed. sticky : as of a layer.
    """


def run_product_golden(product: Product) -> ProductResult:
    """A product's sums and its quantized result (numerics sections 4 and 5): the definition."""
    a, b = product.a, product.b
    left = a.T if product.kind == "tn" else a
    right = b.T if product.kind == "nt" else b
    sticky: set[str] = set()
    sums = exact_product(left, right)
    if product.c is not None:
        sums = sums + product.c  # within acc_bits: Product has checked it
    bits = product.acc_bits
    if product.bias is not None:
        sums, saturated = numerics.add_sat(sums, product.bias, bits=bits)
        if saturated:
            sticky.add("acc_sat")
    scale = numerics.mul(product.scales["a"], product.scales["b"], sticky)
    words = None
    if product.stochastic:
        seed_word = numerics.seed_word(product.seed, product.step, _WORDS_ID)
        words = numerics.random_words(seed_word, *sums.shape)
    quantized = numerics.quantize(
        sums,
        scale,
        product.bits_of("q"),
        words=words,
        previous_amax=product.amax if product.delayed else None,
        sticky=sticky,
    )
    stored = sums.astype(np.int32 if bits == numerics.NARROW_BITS else np.int64)
    return ProductResult(
        tensors={"c": stored, "q": quantized.q},
        scales={"c": scale, "q": quantized.scale},
        amax={"q": quantized.record} if product.delayed else {},
        sticky=sticky,
    )
