"""A rule for compilers: a traced graph may recompute other operators, but not the operators that draw streams."""

from typing import Any

from torch._functorch import config
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from gpudrop.torch import operators


def _recorded(operator: Any) -> None:
    """Tell the compiler to save the output of an operator for the backward pass.

    With activation_memory_budget = 0 the compiler saves nothing, so the policy asks for recomputation. In checkpointed
    regions, which set their own policy, it saves as little as possible. The operator then runs again with the
    previous state of torch's generator.
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
