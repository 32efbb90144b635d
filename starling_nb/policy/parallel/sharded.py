"""A hydra whose weights FSDP2 shards over the processes: asked, saved and restored as a whole one.

``accelerate launch --use_fsdp --fsdp_version 2`` shards policy, reference, critic and optimiser; the model that samples
stays whole in every process. Without shards everything here leaves things as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from starling_nb.blocks import whole
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.recipe import TuningError


def prepared(accelerator: Accelerator, hydra: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """Both in the accelerator's care; what a hydra is asked beside its forward pass puts its weights together too.

    Raises:
        TuningError: adapters are to be sharded.
    """
    if not accelerator.is_fsdp2:
        return tuple(accelerator.prepare(hydra, optimizer))
    from torch.distributed.fsdp import register_fsdp_forward_method

    if any("lora_" in name for name, _ in hydra.named_parameters()):
        raise TuningError("trainable=lora:r is not sharded by FSDP2: launch without it, adapters are small")
    hydra, optimizer = accelerator.prepare(hydra, optimizer)
    for name in ("compare", "reference_logprobs"):
        register_fsdp_forward_method(hydra, name)
    return hydra, optimizer


def gathered(state: Any) -> Any:
    """A state dict with all that is sharded put together on the CPU; all processes must ask."""
    if isinstance(state, dict):
        return {name: gathered(value) for name, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    return whole(state).cpu() if hasattr(state, "full_tensor") else state


def weights_for(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights by name, cut as the module's own are."""
    own = module.state_dict()
    return {name: _cut(value, own.get(name)) for name, value in weights.items()}


def moments_for(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The whole state of an optimiser, cut as its weights are."""
    learning = [weight for group in optimizer.param_groups for weight in group["params"]]
    every = state["state"].items()
    return state | {"state": {i: {name: _cut(value, learning[i]) for name, value in one.items()} for i, one in every}}


def unsharded(hydra: Hydra, fresh: Callable[[], Hydra]) -> Hydra:
    """The hydra; where it is sharded, a ``fresh`` whole one with its weights, for which all processes must ask."""
    if not any(hasattr(weight, "full_tensor") for weight in hydra.parameters()):
        return hydra
    weights, found = gathered(hydra.state_dict()), fresh()
    found.load_state_dict(weights)
    return found


def _cut(value: Any, like: Any) -> Any:
    """This process's shard of ``value``, where ``like`` is one."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
