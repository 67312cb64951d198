"""Changes to the tensors and metadata of a file, which a reader is to refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, dict[str, str]], Any]


def put(name: str, value: Any) -> Change:
    """A tensor as told."""
    return lambda tensors, _: tensors.update({name: np.asarray(value)})


def drop(name: str) -> Change:
    """No such tensor."""
    return lambda tensors, _: tensors.pop(name)


def say(key: str, value: str) -> Change:
    """Metadata as told."""
    return lambda _, metadata: metadata.update({key: value})
