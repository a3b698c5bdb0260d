"""Networks prepared for inference: folded batch normalisation, half precision."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from segkit.models.receptive_field import _allclose, try_forward


@torch.no_grad()
def fold_batch_norm(network: nn.Module, samples: Sequence[Tensor]) -> nn.Module:
    """Return a copy with each BatchNorm2d folded into the Conv2d whose output it takes, or the network itself.

    Which one takes what is seen in a run. A run shows only what goes through modules, so the copy is compared with the
    network, and not used where something else took such an output, too.
    """
    from timm.layers.norm_act import BatchNormAct2d

    folded = copy.deepcopy(network)
    # What remains of a normalisation that is folded.
    rest: dict[nn.BatchNorm2d, nn.Module] = {}
    for module in folded.modules():
        if isinstance(module, BatchNormAct2d):
            rest[module] = nn.Sequential(module.drop, module.act)
        elif type(module) is nn.BatchNorm2d:
            rest[module] = nn.Identity()
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # by identity, which holds while the tensor is kept
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    runs: Counter[nn.Module] = Counter()

    def convolved(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        runs[conv] += 1
        made[id(output)] = conv, output, output._version

    def normalising(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        runs[norm] += 1
        if id(inputs[0]) in made:
            conv, output, version = made[id(inputs[0])]
            if output._version == version:  # no activation changed it in place
                pairs.append((conv, norm))

    hooks = [module.register_forward_hook(convolved) for module in folded.modules() if isinstance(module, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(normalising) for norm in rest]
    accepted = try_forward(folded, samples)
    for hook in hooks:
        hook.remove()
    if accepted is None:
        return network  # the prediction will tell what it does not take
    done: dict[nn.Module, nn.Module] = {}
    for conv, norm in pairs:
        if runs[conv] == runs[norm] == 1 and norm.running_mean is not None and norm.running_var is not None:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            done[norm] = rest[norm]
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if child in done:
                setattr(parent, name, done[child])
    sample, before = accepted
    return folded if _allclose(folded(sample), before) else network


class Autocast(nn.Module):
    """A network some of whose operations want float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the network under autocast to bf16."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return self.network(pixels)  # type: ignore[no-any-return]
