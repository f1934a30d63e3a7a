"""The component folders of diffusers: config.json and weights, and beside them what theirs has no place for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unclip.exchange.links import Link, Shapes, State, give_all, require_same, shapes_of, take_all
from unclip.exchange.weights import as_float, find_weights, read_shapes, read_weights
from unclip.files import UnclipError, read_json, write_json

CONFIG, STEM, OWN = "config.json", "diffusion_pytorch_model", "unclip.safetensors"
CHANGED = 1e-5  # the largest relative difference of weights that are still those which were exported
NETWORK, MOST_OWN = "network", 1000
MOST_SIDE = 1 << 16


@dataclass(frozen=True)
class Component:
    """A component of diffusers.

    Attributes:
        name: of its folder.
        class_name: of diffusers' class, which config.json states.
        config: what that class is built from.
        links: our tensors and its.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    links: Sequence[Link]

    def expected(self, ours: Mapping[str, Tensor]) -> Shapes:
        """Names and shapes of its tensors; `ours` may lie on the meta device."""
        with torch.device("meta"):  # what theirs has and ours has not is not made either
            return shapes_of(give_all(self.links, ours))


def write_component(folder: Path, component: Component, ours: Mapping[str, Tensor], *, network: Mapping[str, Any]) -> None:
    """Writes a component into a folder that does not exist yet, and what theirs can't hold into a file of our own there.

    Args:
        ours: our tensors, by our names.
        network: our config, which goes into our own file.
    """
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, {"_class_name": component.class_name, **component.config})
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in give_all(component.links, ours).items()}
    save_file(weights, folder / f"{STEM}.safetensors", metadata={"format": "pt"})
    held = {name: ours[name].detach().cpu().contiguous() for name in own_names(component.links)}
    if held:
        save_file(held, folder / OWN, metadata={NETWORK: json.dumps(network)})


def own_names(links: Iterable[Link]) -> list[str]:
    """Our tensors that theirs does not give back bit for bit."""
    return list(dict.fromkeys(name for link in links if not link.is_exact for name in link.ours))


def read_component_config(folder: Path, class_name: str) -> dict[str, Any]:
    """The config.json of a component.

    Raises:
        UnclipError: there is none, or it is of another class.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("_class_name") != class_name:
        came = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
        raise UnclipError(f"expected a {class_name} of diffusers in {folder / CONFIG}, got {came!r}")
    return config


def component_shapes(folder: Path) -> Shapes:
    """Names and shapes of a component's tensors, of which no numbers are read."""
    return read_shapes(find_weights(folder, STEM))


def read_component(folder: Path, component: Component, ours_on_meta: Mapping[str, Tensor]) -> State:
    """A component's tensors by our names, with those of our own file where there is one.

    Raises:
        UnclipError: the weights are not those that the config describes, or were changed after our own file was written.
    """
    path = find_weights(folder, STEM)
    require_same(read_shapes(path), component.expected(ours_on_meta), where=str(path), means=f"the {component.class_name} in {folder / CONFIG}")
    own = folder / OWN
    if own.is_file():
        expected = {name: tuple(ours_on_meta[name].shape) for name in own_names(component.links)}
        require_same(read_shapes(own), expected, where=str(own), means="what diffusers has no place for")
    theirs = as_float(read_weights(path))
    taken = take_all(component.links, theirs)
    for name, value in give_all([link for link in component.links if not link.ours], {}).items():
        if not torch.equal(value, theirs[name]):
            raise UnclipError(f"{name} in {path} says something, and the network that was exported has nothing of the kind; remove {own}")
    if own.is_file():
        held = as_float(read_weights(own))
        for name, value in give_all([link for link in component.links if not link.is_exact], held).items():
            if not torch.allclose(value, theirs[name], rtol=CHANGED, atol=CHANGED):
                raise UnclipError(f"{name} in {path} was changed after {own.name} was written; remove {own} to take the changed weights")
        taken |= held
    return {name: value.contiguous() for name, value in taken.items()}


def own_setting(folder: Path, name: str, default: int) -> int:
    """A whole number (or yes and no) of our config in our own file of a component; the default where there is no such file.

    Raises:
        UnclipError: the file says something else.
    """
    own = folder / OWN
    if not own.is_file():
        return default
    try:
        with safe_open(own, framework="pt") as file:
            value = json.loads((file.metadata() or {}).get(NETWORK, "{}")).get(name, default)
    except (SafetensorError, ValueError, AttributeError) as error:
        raise UnclipError(f"{own} is not what unclip writes beside a component ({error}); remove it") from None
    if not isinstance(value, int) or not 0 <= value <= MOST_OWN:
        raise UnclipError(f"{name} in {own} must be in [0, {MOST_OWN}], got {value!r}")
    return value


class Reader:
    """A config.json from elsewhere, read number by number: each is checked, and those that we have no counterpart for too."""

    def __init__(self, folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
        self._where, self._config = folder / CONFIG, config
        self._most = max((side for shape in shapes.values() for side in shape), default=0)
        self.num_tensors = len(shapes)

    def size(self, name: str, default: int | None = None) -> int:
        """A positive number that can't be larger than the longest side of any tensor: who made the file does not decide how much is asked for.

        Raises:
            UnclipError: it is missing or none of that.
        """
        return self._checked(name, self._config.get(name, default))

    def sizes(self, name: str) -> list[int]:
        """A list of such numbers."""
        values = self._config.get(name)
        if not isinstance(values, list) or not 0 < len(values) <= self.num_tensors:
            raise UnclipError(f"{name} in {self._where} must be a list of sizes, got {values!r}")
        return [self._checked(name, value) for value in values]

    def side(self, name: str) -> int:
        """Side of a picture in pixels."""
        return self._checked(name, self._config.get(name), most=MOST_SIDE)

    def product(self, name: str, by: str, defaults: tuple[int, int]) -> int:
        """The product of two sizes that is one itself."""
        return self._checked(f"{name} times {by}", self.size(name, defaults[0]) * self.size(by, defaults[1]))

    def count(self, name: str, default: int | None = None) -> int:
        """A number of blocks, each of which has tensors of its own."""
        value = self.size(name, default)
        if value > self.num_tensors:
            raise UnclipError(f"{name} in {self._where} is {value}, but its weights are {self.num_tensors} tensors in all")
        return value

    def has(self, name: str) -> bool:
        """Whether a setting is given."""
        return self._config.get(name) is not None

    def texts(self, name: str) -> list[str]:
        """A list of words."""
        values = self._config.get(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UnclipError(f"{name} in {self._where} must be a list of words, got {values!r}")
        return values

    def text(self, name: str, default: str = "") -> str:
        """A word."""
        value = self._config.get(name, default)
        if not isinstance(value, str):
            raise UnclipError(f"{name} in {self._where} must be a word, got {value!r}")
        return value

    def share(self, name: str) -> float:
        """A number in [0, 1), 0 where there is none."""
        value = self._config.get(name, 0.0)
        if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
            raise UnclipError(f"{name} in {self._where} must be in [0, 1), got {value!r}")
        return float(value)

    def require_implied(self, name: str, implied: object) -> None:
        """A setting that ours does not have apart from others.

        Raises:
            UnclipError: it is given, and not as what the others imply.
        """
        if self.has(name) and self._config[name] != implied:
            raise UnclipError(f"{name} in {self._where} is {self._config[name]!r}; unclip's network has no counterpart for that, expected {implied!r}")

    def require(self, expected: Mapping[str, Any], *, defaults: Mapping[str, Any]) -> None:
        """Compares settings that ours has at one value only.

        Raises:
            UnclipError: one has another value.
        """
        for name, value in expected.items():
            came = self._config.get(name, defaults.get(name))
            if came != value:
                raise UnclipError(f"{name} in {self._where} is {came!r}; unclip's network has no counterpart for that, expected {value!r}")

    def _checked(self, name: str, value: object, *, most: int | None = None) -> int:
        limit = self._most if most is None else most
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UnclipError(f"{name} in {self._where} must be a positive number, got {value!r}")
        if value > limit:
            raise UnclipError(f"{name} in {self._where} is {value:,}; its weights allow {limit:,} at the most")
        return value
