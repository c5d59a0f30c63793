"""What a compiler may do with a traced graph that draws: it may run other parts of it again, but not the drawing."""

from typing import Any

from torch._functorch import config
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from gpudrop.torch import operators


def _recorded(operator: Any) -> None:
    """Have what the operator draws kept for the backward pass, where the compiler decides what it keeps.

    With activation_memory_budget = 0 it keeps nothing, and in checkpointed regions as little as it can. The drawing is
    run again there, with the state that torch's generator had, for which `CheckpointPolicy` asks.
    """

    def record(mode: ProxyTorchDispatchMode, *args: Any, **kwargs: Any) -> Any:
        drawn = mode.__torch_dispatch__(operator, (), args, kwargs)
        node = next(reversed(mode.tracer.graph.nodes))
        if node.target is operator and node.meta.get("recompute") is None:
            keeps = config.activation_memory_budget > 0
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
        return drawn

    operator.py_impl(ProxyTorchDispatchMode)(record)


_recorded(operators.STREAM)
_recorded(operators.PLACED)
