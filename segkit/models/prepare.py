"""Prepare networks for inference: fold batch normalisation, run in half precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from segkit.models.receptive_field import outputs_match, try_forward


@torch.no_grad()
def fold_batch_norm(network: nn.Module, samples: Sequence[Tensor]) -> bool:
    """Fold each BatchNorm2d of a network into the Conv2d before it, in place.

    Pairs of convolution and normalisation are found in a forward pass. The hooks only see modules, so the outputs
    before and after it are compared, in case a convolution's output is also used elsewhere.

    Parameters
    ----------
    samples
        float32 (1, C, H, W); the first one that the network accepts is used. If it accepts none, nothing is folded.

    Returns
    -------
    bool
        False if the network gives other outputs now, and is of no use.
    """
    from timm.layers.norm_act import BatchNormAct2d

    # What replaces a normalisation that is folded.
    replacements: dict[nn.BatchNorm2d, nn.Module] = {}
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            replacements[module] = nn.Sequential(module.drop, module.act)
        elif type(module) is nn.BatchNorm2d:
            replacements[module] = nn.Identity()
    # By id, which is unique as long as the tensor is kept.
    conv_outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    runs: Counter[nn.Module] = Counter()

    def record_convolution(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        runs[conv] += 1
        conv_outputs[id(output)] = conv, output, output._version

    def record_normalization(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        runs[norm] += 1
        if id(inputs[0]) in conv_outputs:
            conv, output, version = conv_outputs[id(inputs[0])]
            if output._version == version:  # no activation changed it in place
                pairs.append((conv, norm))

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(record_convolution) for conv in convolutions]
    hooks += [norm.register_forward_pre_hook(record_normalization) for norm in replacements]
    accepted = try_forward(network, samples)
    for hook in hooks:
        hook.remove()
    if accepted is None:
        return True  # the prediction will report which sizes it does not accept
    replaced: dict[nn.Module, nn.Module] = {}
    for conv, norm in pairs:
        if runs[conv] == runs[norm] == 1 and norm.running_mean is not None and norm.running_var is not None:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            replaced[norm] = replacements[norm]
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in replaced:
                setattr(parent, name, replaced[child])
    sample, before = accepted
    return outputs_match(network(sample), before)


class Autocast(nn.Module):
    """A network with operations that need float32; all others run in bf16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the network under autocast to bf16."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return self.network(pixels)  # type: ignore[no-any-return]
