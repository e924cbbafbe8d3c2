"""strategies: several processes that hold pieces of the weights, and which of Lightning's strategies can train here."""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy, StrategyRegistry
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from alignlab.batch import Batch
from alignlab.errors import InputError
from alignlab.modules.parted import layers_of
from alignlab.objectives import Contrastive, Objective
from alignlab.objectives.base import gathered

PRECISIONS = ("32-true", "bf16-mixed")
"""What ``FSDP2`` trains in."""


class FSDP2(DDPStrategy):
    """Each process holds a piece of every weight of the model, and of the optimizer's state: PyTorch's ``fully_shard``.

    The gradients are DDP's. A layer, which is an element of one of the model's lists of modules, is whole while it
    computes; what stands outside of layers, such as embeddings, projector and head, is whole for the length of a step.
    Everywhere whole are frozen or training weights beside the model, which objectives have, and what cannot be cut:
    single numbers and codes of 4 bits.

    With bf16-mixed weights and gradients travel in float32, and autocast makes of them what it makes with DDP; these
    copies wait for the backward pass but with ``backbone.gradient_checkpointing``. Checkpoints are those of one
    process, so training goes on with any number of them, or without this strategy.
    """

    def model_to_device(self) -> None:
        """Wait until there are pieces, as the whole may not fit."""

    def configure_ddp(self) -> None:
        objective = self.lightning_module
        name, whole = type(objective).__name__, set(_uncut(objective))
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for layer in layers_of(objective.backbone.model):
            fully_shard(layer, mesh=mesh, ignored_params=whole)
        fully_shard(objective, mesh=mesh, ignored_params=whole)
        type(objective).__name__ = name  # which messages name
        for method in ("training_step", "validation_step", "begin"):
            register_fsdp_forward_method(objective, method)
        objective.to(self.root_device)

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if len({isinstance(each, DTensor) for each in group["params"]}) > 1:
                    group["foreach"] = False  # which takes no whole weights beside pieces

    def training_step(self, batch: Batch, *arguments: Any) -> Any:
        self._check_alike(batch)
        with self.precision_plugin.train_step_context():
            torch.set_autocast_cache_enabled(False)  # until here: it would keep a copy of every layer
            return self.lightning_module.training_step(batch, *arguments)

    def validation_step(self, *arguments: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():  # what is put together here is trained on later
            return super().validation_step(*arguments)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **settings: Any) -> Any:
        def averaged() -> Any:
            result = closure()
            _average([each for group in optimizer.param_groups for each in group["params"]])
            return result

        return super().optimizer_step(optimizer, averaged, model, **settings)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        def whole(piece: DTensor) -> Tensor | None:
            joined = piece.full_tensor()
            return joined.cpu() if self.is_global_zero else None

        checkpoint = tree_map_only(DTensor, whole, checkpoint)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            state = {
                index: {name: _cut_as(parameters[index], value) for name, value in values.items()}
                for index, values in saved["state"].items()
            }
            ways = [group["foreach"] for group in optimizer.param_groups]
            optimizer.load_state_dict({**saved, "state": state})
            for group, foreach in zip(optimizer.param_groups, ways, strict=True):
                group["foreach"] = foreach

    def teardown(self) -> None:
        # Pieces stay where they are: the last checkpoint is yet to be written.
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    def _check_alike(self, batch: Batch) -> None:
        """Raise InputError where processes would run layers unequally often, and so wait for each other for ever."""
        objective = self.lightning_module
        parts = [each for each in objective.modules() if isinstance(each, Contrastive) and each.chunk_size is not None]
        kind: list[Any] = [_runs(tokens.num_images, tokens.attention_mask) for tokens in batch]
        kind += [
            _runs(tokens.num_images[rows], tokens.attention_mask[rows])
            for part in parts
            for tokens in batch
            for rows in part.chunks(tokens)
        ]
        if batch.rejected is not None:
            kind.append(objective.backbone.may_join(batch.conversation, batch.rejected, batch.prompt_lengths))
        if any(other != kind for other in gathered(kind)):
            raise InputError(
                "trainer.strategy: with fsdp2 all processes have to run the same layers in a step, and their batches "
                "differ in whether there are pictures or texts (in each chunk, where there are some), in the number of "
                "chunks, or in whether two answers fit into the decoder's window; use ddp, or data that are alike"
            )


def _runs(num_images: Tensor, attention_mask: Tensor) -> tuple[bool, bool]:
    """Whether these rows run a vision tower, and a language model."""
    return bool(num_images.any()), bool(attention_mask.any())


StrategyRegistry.register("fsdp2", FSDP2, description="Fully sharded data parallel training by fully_shard")


def check_strategy(strategy: str | Strategy) -> None:
    """Raise InputError for a strategy that cannot train here, or cannot end in a whole backbone."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if isinstance(strategy, FSDPStrategy) or name.startswith("fsdp") and name != "fsdp2":
        raise InputError(
            f"trainer.strategy: {name} is PyTorch's first kind of FSDP, which leaves no whole weights to judge and to "
            "save; use fsdp2, which cuts weights into pieces, too, on CPUs as well as on GPUs"
        )
    if isinstance(strategy, DeepSpeedStrategy) or name.startswith("deepspeed"):
        missing = "" if find_spec("deepspeed") else "DeepSpeed is not installed, and "
        raise InputError(
            f"trainer.strategy: {name}: {missing}its engine takes gradients away before they can be weighed by what "
            "each process and micro-batch saw, so it would train on others, silently; use fsdp2, which cuts weights, "
            "gradients and the optimizer's state into pieces, too"
        )


def check_precision(trainer: Trainer) -> None:
    """Raise InputError for a precision that its strategy cannot train in."""
    if isinstance(trainer.strategy, FSDP2) and trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision: with fsdp2 expected {' or '.join(PRECISIONS)}, got {trainer.precision}; of gradients "
            "in pieces no process alone could say whether they overflow"
        )


def _uncut(objective: Objective) -> Iterator[nn.Parameter]:
    """The parameters that every process holds whole."""
    model = {id(each) for each in objective.backbone.model.parameters()}
    for each in objective.parameters():
        if id(each) not in model or each.ndim == 0 or not each.is_floating_point():
            yield each


def _average(parameters: list[nn.Parameter]) -> None:
    """Average over processes the gradients of what is whole in all of them; what has none anywhere gets none."""
    whole = [each for each in parameters if not isinstance(each, DTensor)]
    if not whole:
        return
    has = torch.tensor([each.grad is not None for each in whole], dtype=torch.long, device=whole[0].device)
    flat = torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in whole])
    distributed.all_reduce(has)
    distributed.all_reduce(flat)
    flat = flat / distributed.get_world_size()
    for each, anywhere, values in zip(whole, has.tolist(), flat.split([each.numel() for each in whole]), strict=True):
        each.grad = values.view_as(each).to(each.dtype) if anywhere else None


def _cut_as(parameter: Tensor, value: Any) -> Any:
    """This process's piece of what belongs to a parameter, as of a whole average."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
