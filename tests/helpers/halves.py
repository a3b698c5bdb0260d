"""What one of two processes computes: losses and batch normalisation of its half of a batch.

A module of its own, because it is imported by the processes, and importing Lightning would take most of their time.
"""

import timm.layers
import torch
from torch import distributed, nn

from segkit.runtime import distributed as processes
from segkit.task import IGNORE, LandCoverClass, Task
from segkit.training.losses import LOSSES

A, B = LandCoverClass("water", 3), LandCoverClass("forest", 9)
TASKS = (Task("binary", (A,)), Task("multiclass", (A, B)), Task("multilabel", (A, B)))

LAYERS = {
    "plain": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "bare": lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False),
    "with its activation": lambda: timm.layers.BatchNormAct2d(3),
}


def loss_cases():
    """{name: (loss, task, logits, targets, weights)}; the first half of a batch has far fewer known pixels."""
    random = torch.Generator().manual_seed(0)
    cases = {}
    for task in TASKS:
        logits = torch.randn(4, task.channels, 12, 12, generator=random)
        targets = torch.randint(
            0, len(task.categories) // task.n_targets, (4, task.n_targets, 12, 12), generator=random
        )
        targets[:2, :, 4:] = IGNORE
        targets[:2, -1] = IGNORE  # of the last class only the second half knows something
        for name, loss in LOSSES.items():
            for weights in (None, [1.0 + channel for channel in range(task.channels)]):
                cases[f"{task.type} {name} {weights}"] = loss, task, logits, targets, weights
    return cases


def learned(part, share):
    """What the losses and layers give for a part of the batches: values, gradients and running statistics."""
    found = {}
    for name, (loss, task, logits, targets, weights) in loss_cases().items():
        mine = logits[part].clone().requires_grad_()
        value = loss(task, mine, targets[part], weights)
        value.backward()
        found[name] = value.detach(), mine.grad * share
    random = torch.Generator().manual_seed(1)
    values = 10 + torch.randn(4, 3, 5, 7, generator=random) * torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1, 1)
    slopes = torch.randn(values.shape, generator=random)
    for name, make in LAYERS.items():
        layer = make()
        for number, weight in enumerate(layer.parameters()):
            weight.data += torch.arange(3) / 10 + number
        mine = values[part].clone().requires_grad_()
        for _ in range(2):
            with processes.sync_batch_norm():
                out = layer(mine)
            (out * slopes[part]).sum().backward()
        sums = [processes.all_reduce_sum(weight.grad) for weight in layer.parameters()]
        found[name] = out.detach(), mine.grad, *sums, *(one.clone() for one in layer.buffers())
        layer.eval()
        with processes.sync_batch_norm():
            found[f"{name}, evaluated"] = (layer(mine).detach(),)
    return found


def work(rank, folder):
    """One of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = learned(slice(2 * rank, 2 * rank + 2), 1 / 2)  # DDP takes the mean of the gradients
    found["broadcast"] = (torch.tensor(processes.broadcaster()(5 + rank)),)
    torch.save(found, f"{folder}/{rank}.pt")
