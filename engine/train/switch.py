"""Several LoRA adapters on one base: which of them computes, and which of them are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class AdapterSwitch:
    """Makes one adapter of a PEFT model the active one, without peft's change of who is trained.

    peft's set_adapter() also turns on gradients of what it activates, and off those of the others.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self._listed: tuple[str, ...] = ()  # the adapters that the two lists below are of
        self._layers: list[BaseTunerLayer] = []
        self._gradients: list[tuple[nn.Parameter, bool]] = []

    @property
    def active(self) -> str:
        """The adapter that computes now."""
        name: str = self.model.active_adapters[0]
        return name

    def add(self, name: str, config: Any, *, trained: bool) -> None:
        """A new adapter with weights of its own, drawn at random; it does not compute yet."""
        before = self.active
        self.model.add_adapter(name, config)
        self._trained |= {key for key, _ in self.parameters_of(name)} if trained else set()
        self.use(before)

    def copy(self, source: str, target: str, *, trained: bool) -> None:
        """A new adapter that begins as another is."""
        self.add(target, self.model.peft_config[source], trained=trained)
        weights = dict(self.model.named_parameters())
        for key, parameter in self.parameters_of(target):
            parameter.data.copy_(weights[key.replace(f".{target}.", f".{source}.")].data)

    def parameters_of(self, name: str) -> list[tuple[str, nn.Parameter]]:
        """An adapter's parameters by name, in the order of the model."""
        return [(key, p) for key, p in self.model.named_parameters() if f".{name}." in key]

    def use(self, name: str) -> None:
        """From now on this adapter computes."""
        self._list()
        for layer in self._layers:
            layer.set_adapter(name)
        self.model.base_model.active_adapter = name
        for parameter, trained in self._gradients:
            parameter.requires_grad_(trained)

    def _list(self) -> None:
        """Walk the model once for every set of adapters: it is used several times a step."""
        adapters = tuple(self.model.peft_config)
        if adapters == self._listed:
            return
        self._layers = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        named = self.model.named_parameters()
        self._gradients = [(parameter, key in self._trained) for key, parameter in named]
        self._listed = adapters

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Within, this adapter computes; None: the base alone."""
        if name is None:
            with self.model.disable_adapter():
                yield
            self.use(self.active)
            return
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)
