"""All quantized LoRA layers of a model: puts them in place, updates them, keeps their state."""

from pathlib import Path
from typing import Any

from torch import nn

from systolora_sim import calibrate
from systolora_sim.layer import ADAPTERS, Layer, LayerError, LayerResult
from systolora_sim.layerfile import LayerFileError
from systolora_sim.records import write_call, write_step
from systolora_sim.torch import saved
from systolora_sim.torch.calls import LayerCalls
from systolora_sim.torch.linear import QuantizedLoRALinear, to_numpy
from systolora_sim.torch.peft_layers import Found, find_layers
from systolora_sim.torch.recipe import Recipe

__all__ = ["QuantizedAdapters", "quantize_lora"]


class QuantizedAdapters:
    """The quantized LoRA layers of a model, by name, and what they share. Made by `quantize_lora`.

    Members
    -------
    layers : dict
        `QuantizedLoRALinear` by name, in sorted order; a layer's place is its number for the
        random words.
    recipe : Recipe
    results : dict
        Each layer's last `LayerResult` whose backward pass has run.
    """

    def __init__(self, layers: dict[str, Found], recipe: Recipe, record: str | Path | None) -> None:
        self.recipe = recipe
        self.results: dict[str, LayerResult] = {}
        self._lr = recipe.lr
        self._record = None if record is None else Path(record)
        self._calls = 0
        self._pending: dict[str, tuple[Layer, LayerResult]] = {}
        self._places = {name: found.places for name, found in layers.items()}
        self.layers: dict[str, QuantizedLoRALinear] = {}
        for index, (name, found) in enumerate(layers.items()):
            calls = _calls(name, index, found, recipe)
            self.layers[name] = QuantizedLoRALinear(found.module, found.adapter, calls, self._ran)
        for name, layer in self.layers.items():
            layer.train(layer.original.training)
            layer.show_masters()
            for parent, attribute in self._places[name]:
                _put(parent, attribute, layer)

    # Training -----------------------------------------------------------------------------------

    def _ran(self, module: QuantizedLoRALinear, layer: Layer, result: LayerResult) -> None:
        """Takes the results of a backward pass."""
        name = module.name
        if self.recipe.optimizer is None:
            module.calls.commit(result)
            if self._record is not None:
                write_call(self._record, self._calls, layer, result)
            self._calls += 1
        elif name in self._pending:
            raise LayerError(f"{name}: a second backward pass before step() or zero_grad()")
        else:
            self._pending[name] = (layer, result)
        self.results[name] = result

    def step(self) -> None:
        """The update of all layers that have a gradient, in the device's arithmetic.

        Layers without one stay as they are; the step's number goes on for all of them. Clears the
        gradients.

        Raises
        ------
        LayerError
            If the recipe has no optimizer, or no layer has a gradient.
        """
        if self.recipe.optimizer is None:
            raise LayerError("step: the recipe has no optimizer: call the step of torch's")
        if not self._pending:
            raise LayerError("step: no layer has a gradient: must come after backward()")
        rule = self.recipe.update_rule(self._lr)
        for name, (layer, result) in sorted(self._pending.items()):
            module = self.layers[name]
            before, after = module.calls.update(layer, result, rule)
            if self._record is not None:
                write_step(self._record, self._calls, before, after)
            self._calls += 1
            module.show_masters()
        for module in self.layers.values():
            module.calls.step += 1
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forgets the gradients of backward passes since the last step."""
        self._pending.clear()
        for layer in self.layers.values():
            for parameter in layer.adapters:
                parameter.grad = None

    @property
    def lr(self) -> float:
        """The learning rate; may be set between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.recipe.update_rule(value)
        self._lr = value

    # What is to be seen -------------------------------------------------------------------------

    @property
    def step_number(self) -> int:
        """Number of the next step: the largest of all layers'."""
        return max(layer.calls.step for layer in self.layers.values())

    @property
    def sticky(self) -> dict[str, frozenset[str]]:
        """The sticky bits that each layer has seen so far: saturations, by name."""
        return {name: frozenset(layer.calls.sticky) for name, layer in self.layers.items()}

    @property
    def zero_gradients(self) -> dict[str, frozenset[str]]:
        """Which of dA and dB were zero everywhere in each layer's last backward pass.

        A lora_B of zeros, with which adapters begin, gives a dA of zeros.
        """
        return {
            name: frozenset(tensor for tensor in ("dA", "dB") if not result.tensors[tensor].any())
            for name, result in self.results.items()
        }

    # State --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step needs, to go on bit for bit: tensors, numbers and strings.

        `torch.save` takes it, and `torch.load` gives it back with `weights_only=True`. Gradients
        that wait for step() are not in it.
        """
        return saved.state_dict(self.recipe, self._lr, self._calls, self.layers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the place of the present state, all of it or nothing.

        Raises
        ------
        LayerError
            If the state is not of these layers, this optimizer and this seed, or is damaged.
        """
        self._lr, self._calls = saved.load_state_dict(self.recipe, self.layers, state)
        self.results.clear()
        self.zero_grad()

    def restore(self) -> None:
        """Puts PEFT's float layers back, with the adapters' values as they are now."""
        for name, layer in self.layers.items():
            layer.original.train(layer.training)
            for parent, attribute in self._places[name]:
                _put(parent, attribute, layer.original)


def _put(parent: nn.Module, attribute: str, module: nn.Module) -> None:
    """Puts a module in the place of another; containers register by key all the same."""
    parent._modules[attribute] = module


def _calls(name: str, index: int, found: Found, recipe: Recipe) -> LayerCalls:
    """The arithmetic of a layer as it begins."""
    module, base = found.module, found.module.get_base_layer()
    reals = {"weight": to_numpy(base.weight)} | {
        tensor: to_numpy(getattr(module, tensor)[found.adapter].weight) for tensor in ADAPTERS
    }
    masters = []
    for tensor, values in reals.items():
        try:
            if tensor == "weight":
                weight, scale = calibrate.quantize_float(values, recipe.width(tensor))
            else:
                tensor_id = 2 * index + ADAPTERS.index(tensor)
                masters.append(calibrate.load_master(values, tensor_id))
        except ValueError as error:
            raise LayerError(f"{name}: {tensor}: {error}") from None
    return LayerCalls(
        name=name,
        index=index,
        recipe=recipe,
        weight=weight,
        weight_scale=scale,
        bias=None if base.bias is None else to_numpy(base.bias),
        gain=calibrate.from_float(module.scaling[found.adapter]),
        masters=None if recipe.optimizer is None else (masters[0], masters[1]),
    )


def quantize_lora(
    model: nn.Module, recipe: Recipe | None = None, record: str | Path | None = None
) -> QuantizedAdapters:
    """Lets the LoRA layers of a model run and train in the device's arithmetic.

    Parameters
    ----------
    model : Module
        With LoRA adapters of PEFT on linear layers (`get_peft_model`, or `add_adapter` of
        diffusers and transformers), one active adapter each. Its LoRA layers are replaced in place.
    recipe : Recipe or None
        How they train; None: `Recipe()`.
    record : str, Path or None
        A directory that gets a file of each call with a backward pass, and its results
        (`systolora_sim.records`), for `systolora replay`. It is made if it is not there.

    Raises
    ------
    LayerError
        If the model has no such layer, or one that the device cannot train; nothing is changed.
    LayerFileError
        If the directory cannot be made.
    """
    layers = find_layers(model)
    if record is not None:
        try:
            Path(record).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LayerFileError(f"{record}: cannot be made: {error.strerror}") from None
    return QuantizedAdapters(layers, recipe or Recipe(), record)
