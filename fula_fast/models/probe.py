"""Shapes, parameters and FLOPs of a built model, by running one black image through it."""

from __future__ import annotations

from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .layout import Cost
from .staged import Staged, eval_mode


def costs(staged: Staged) -> list[Cost]:
    """Cost of each stage, then of the head."""
    tensor = next(iter(staged.state().values()))
    x = tensor.new_zeros((1, *staged.input_shape))
    found = []
    # Only the plain form of attention is counted on every device.
    with eval_mode(staged), sdpa_kernel(SDPBackend.MATH):
        x = staged.prepared(x)
        for part in (*staged.stages, staged.head):
            # The counter would follow gradients, which a view of a weight does not have here.
            weights = {name: weight.detach() for name, weight in part.named_parameters()}
            with FlopCounterMode(display=False) as counter:
                x = functional_call(part, weights, (x,))
            parameters = sum(p.numel() for p in part.parameters())
            found.append(Cost(tuple(x.shape[1:]), parameters, counter.get_total_flops()))
    return found
