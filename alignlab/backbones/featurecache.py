"""featurecache: what a frozen vision tower gives for a picture, looked up on disk in place of being computed."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignlab.adapters import has_adapters
from alignlab.backbones.featurestore import FeatureStore
from alignlab.errors import InputError
from alignlab.modules.fingerprints import weights_fingerprint
from alignlab.modules.parted import evaluating

if TYPE_CHECKING:
    from alignlab.backbones.backbone import Backbone

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a vision tower."""


class CachedTower:
    """A vision tower that computes the rows (pictures, or tiles of them) that are not in a folder yet, and keeps them.

    A row is found by what the tower is given for it, bit by bit, and so by picture, corruption and processor; by the
    tower's weights, type and settings; and by the arithmetic: device, autocast, versions of the libraries. What is
    kept of it is what the tower is asked for: the hidden states that the model selects, else the last one.

    Nothing is looked up or kept while a gradient would reach the tower's weights, or where it holds adapters, drops at
    random, or has its weights in pieces in several processes: a warning says so once, and the tower computes all.

    It stands in the place of the tower's ``forward``, so that whoever calls the tower reads through it.

    Args:
        tower: One that gives a row of features for each row that it is given.
        root: Where features of any towers are.
        usual: The settings, beside tensors, that the model calls the tower with; other calls are computed.
        output: What the tower gives when so called, with ``M`` rows.
    """

    def __init__(self, tower: nn.Module, root: Path, usual: str, output: Any) -> None:
        self.tower, self.root, self.usual = tower, root, usual
        self.form, self.num_states, self.selected = _form_of(output)
        self._size = _size(tower.parameters())
        self._state: tuple[Any, ...] | None = None
        self._drops = self._adapted = False
        self._weights = ""
        self._stores: dict[tuple[str, ...], FeatureStore] = {}
        self._warned: set[str] = set()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As the tower's own, with no more in what it gives than is kept."""
        given = arguments, named
        tensors = _tensors(given)
        if _settings(given) != self.usual or any(tensor.requires_grad for tensor in tensors) or self._is_off():
            return self.computed(given)
        return self.formed(self._rows(given, tensors[0].device))

    def computed(self, given: Given) -> Any:
        """What the tower itself gives."""
        arguments, named = given
        return type(self.tower).forward(self.tower, *arguments, **named)

    def kept(self, output: Any) -> Tensor:
        """What is kept of M rows of a tower's output, (M, K, ...), of K states."""
        if not self.selected:
            return output.last_hidden_state.detach()[:, None]
        return torch.stack([output.hidden_states[place] for place in self.selected], 1).detach()

    def formed(self, kept: Tensor) -> Any:
        """The tower's output with what is kept of it alone."""
        states = [each.contiguous() for each in kept.unbind(1)]
        if not self.selected:
            return self.form(last_hidden_state=states[0])
        hidden: list[Tensor | None] = [None] * self.num_states
        for place, state in zip(self.selected, states, strict=True):
            hidden[place] = state
        return self.form(hidden_states=tuple(hidden))

    def flush(self) -> None:
        """Write what waits in memory."""
        for store in self._stores.values():
            store.flush()

    def _rows(self, given: Given, device: torch.device) -> Tensor:
        store, names = self._store(device), _names(given)
        found = store.get(names)
        lacking = {name: row for row, name in enumerate(names) if name not in found}  # each picture once
        if lacking:
            whole = len(lacking) == len(names)
            made = self.kept(self.computed(given if whole else _picked(given, list(lacking.values()))))
            copies = {name: row.clone() for name, row in zip(lacking, made.cpu(), strict=True)}
            store.put(copies)
            if whole:
                return made
            found |= copies
        return torch.stack([found[name] for name in names]).to(device)

    def _store(self, device: torch.device) -> FeatureStore:
        kind = device.type
        made_of = {
            "weights": self._weights,
            "settings": _settings_fingerprint(self.tower.config),
            "call": self.usual,
            "device": torch.cuda.get_device_name(device) if kind == "cuda" else kind,
            "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "none",
            "matrix products": torch.get_float32_matmul_precision(),
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }
        key = tuple(made_of.values())
        if key not in self._stores:
            self._stores[key] = FeatureStore(self.root, made_of)
        return self._stores[key]

    def _is_off(self) -> bool:
        """Whether features cannot be kept for now; notices weights that are others by now."""
        weights = list(self.tower.parameters())
        if any(isinstance(each, DTensor) for each in weights) or _size(weights) != self._size:
            # An adapter adds weights, or packs those there are.
            return self._warn("it holds adapters, or its weights are in pieces")
        state = tuple((each.data_ptr(), each._version) for each in (*weights, *self.tower.buffers()))
        trains = any(each.requires_grad for each in weights)
        if trains and (torch.is_grad_enabled() or self._state not in (None, state)):
            return self._warn("it trains")  # and has other weights at each step, of which none is worth a fingerprint
        if state != self._state:
            self._state, self._weights = state, weights_fingerprint(self.tower)
            self._adapted, self._drops = has_adapters(self.tower), _drops(self.tower)
        if self._adapted:
            return self._warn("it holds adapters")
        return self._drops and self.tower.training and self._warn("it drops at random")

    def _warn(self, why: str) -> bool:
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(
                f"backbone.features: {self.root} is not used: the vision tower's features are not the same each time, "
                f"since {why}; freeze the tower, or leave features out",
                stacklevel=2,
            )
        return True


def cache_features(backbone: "Backbone", folder: str) -> CachedTower | None:
    """Keep what a backbone's vision tower gives in a folder, from now on; None on the meta device.

    What the model makes of two pictures is tried out, with and without.

    Raises:
        InputError: The tower gives no row of features for each picture or tile, or the folder cannot be made.
    """
    tower, root = backbone.model.get_encoder(modality="image"), Path(folder)
    _check_place(root)
    if backbone.device.type == "meta":
        return None
    calls: list[tuple[Given, Any]] = []
    hook = tower.register_forward_hook(
        lambda _, given, named, out: calls.append(((given, named), out)), with_kwargs=True
    )
    try:
        with evaluating(backbone), torch.no_grad():
            pictures = _two_pictures(backbone)
            usual = backbone.model.get_image_features(**pictures, return_dict=True).pooler_output
            [(given, output)] = calls
            cached = CachedTower(tower, root, _settings(given), output)
            _check_rows(cached, given, output)
            tower.forward = lambda *arguments, **named: cached.formed(cached.kept(output))
            short = backbone.model.get_image_features(**pictures, return_dict=True).pooler_output
            _check(all(_same(one, other) for one, other in zip(_parts(usual), _parts(short), strict=True)))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"backbone.features: the vision tower of {backbone.path}, a {type(backbone.model).__name__}, does not give "
            f"one row of features for each picture or tile by itself, or not in the fields that are kept ({error}); "
            "leave features out"
        ) from error
    finally:
        hook.remove()
        vars(tower).pop("forward", None)
    _make(root)
    tower.forward = cached.forward
    return cached


def _check_rows(cached: CachedTower, given: Given, output: Any) -> None:
    """Raise ValueError unless each row of what is given makes a row of what comes out."""
    made, tensors = cached.kept(output), _tensors(given)
    _check(made.shape[0] > 1 and all(tensor.dim() and tensor.shape[0] == made.shape[0] for tensor in tensors))
    alone = cached.kept(cached.computed(_picked(given, [made.shape[0] - 1])))
    _check(_same(alone[0], made[-1]))


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError("as two pictures have shown")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree, but for rounding."""
    if one.shape != other.shape:
        return False
    rounding = 3e-2 if other.element_size() < 4 else 1e-3
    return bool((one - other).abs().max() <= rounding * other.abs().max())


def _parts(features: Any) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else features


def _two_pictures(backbone: "Backbone") -> dict[str, Tensor]:
    shown = [Image.radial_gradient("L").convert("RGB"), Image.linear_gradient("L").convert("RGB")]
    made = backbone.encoder.image_processor(images=shown, return_tensors="pt")
    taken = {name: each for name, each in made.items() if name in backbone.image_arguments}
    return {name: each.to(backbone.device) for name, each in taken.items() if isinstance(each, Tensor)}


def _check_place(root: Path) -> None:
    if found := [path for path in (root, *root.parents) if path.is_file()]:
        raise InputError(f"backbone.features: the folder {root} cannot be made, since {found[0]} is a file")


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"backbone.features: the folder {root} cannot be made: {error}") from None


def _form_of(output: Any) -> tuple[type, int, tuple[int, ...]]:
    """The class of a tower's output, and how many hidden states it has, and the places of those that are there."""
    states = output.get("hidden_states") or ()
    return type(output), len(states), tuple(place for place, state in enumerate(states) if state is not None)


def _tensors(given: Given) -> list[Tensor]:
    arguments, named = given
    return [each for each in (*arguments, *named.values()) if isinstance(each, Tensor)]


def _settings(given: Given) -> str:
    """What a tower is called with beside tensors."""
    arguments, named = given
    plain = {str(place): each for place, each in enumerate(arguments)} | named
    plain = {name: each for name, each in plain.items() if name != "return_dict" and each is not None}
    return repr(sorted((name, "tensor" if isinstance(each, Tensor) else each) for name, each in plain.items()))


def _names(given: Given) -> list[str]:
    """A name of the content of each row that a tower is given."""
    arrays = [(str(t.dtype), t.detach().cpu().contiguous()) for t in _tensors(given)]
    hashes = [sha256() for _ in arrays[0][1]]
    for kind, array in arrays:
        for row, digest in zip(array, hashes, strict=True):
            digest.update(f"{kind} {tuple(row.shape)} ".encode())
            digest.update(row.flatten().view(torch.uint8).numpy())
    return [digest.hexdigest()[:32] for digest in hashes]


def _picked(given: Given, rows: Sequence[int]) -> Given:
    """Some rows of what a tower is given."""
    arguments, named = given
    return tuple(_taken(each, rows) for each in arguments), {name: _taken(each, rows) for name, each in named.items()}


def _taken(each: Any, rows: Sequence[int]) -> Any:
    return each[list(rows)] if isinstance(each, Tensor) else each


def _size(weights: Iterable[Tensor]) -> int:
    return sum(each.numel() for each in weights)


def _settings_fingerprint(config: Any) -> str:
    """Of what decides, beside weights, what a tower computes."""
    names = ("_name_or_path", "transformers_version")  # where it was read from changes nothing
    found: Mapping[str, Any] = {name: value for name, value in config.to_dict().items() if name not in names}
    text = json.dumps(found, sort_keys=True, default=str) + str(config._attn_implementation)
    return sha256(text.encode()).hexdigest()[:16]


def _drops(tower: nn.Module) -> bool:
    """Whether a tower drops at random where it trains, in modules or in attentions that keep a share of their own."""
    for module in tower.modules():
        shares = [value for name, value in vars(module).items() if name == "p" or "drop" in name]
        if any(isinstance(share, float) and share > 0 for share in shares):
            return True
    return False
