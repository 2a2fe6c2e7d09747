"""A model of which a part is frozen: what engines do about it.

The backward pass ends at the lowest layer with something to train. An exit below that has nothing
to send it to, but norm and head may still learn there.
"""

import torch
from torch import Tensor, nn

from models.execute import Call, plain_call, run_plan
from models.llama import Llama
from models.plan import LayerPlan, Parts
from models.tokens import Tokens


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that need a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def end_at_leaves(model: Llama) -> None:
    """If a part of a model is frozen, let every exit be something a backward pass can start at."""
    if len(trained_parameters(model)) < len(list(model.parameters())):
        model.run_plan = _run_plan_to_leaves


def _run_plan_to_leaves(
    plan: LayerPlan, layers: nn.ModuleDict, h: Tensor, tokens: Tokens, call: Call = plain_call
) -> dict[int, Tensor]:
    """Run a plan on h (B, S, D); exits (B, S, D) below all that is trained become leaves.

    FSDP2 reduces what norm and head have learnt when a backward pass arrives at the outputs.
    """
    hiddens = run_plan(plan, layers, h, tokens, call)
    if not torch.is_grad_enabled():
        return hiddens
    return {e: h if h.requires_grad else h.detach().requires_grad_() for e, h in hiddens.items()}


def with_gradient(call: Call) -> Call:
    """Return a way of calling layers in which an input needs a gradient if the layer is trained.

    DeepSpeed's stage 3 knows by the gradients of its inputs when a layer has gone backward. Nobody
    wants that of the lowest layer that is trained.
    """

    def ask(layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
        wanted = torch.is_grad_enabled() and not h.requires_grad
        if wanted and any(p.requires_grad for p in layer.parameters()):
            h = h.detach().requires_grad_()
        return call(layer, h, tokens, parts)

    return ask
