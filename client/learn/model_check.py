"""Checks that no module inside a per-patient loss can couple the patients of a batch.

In: a module.
Out: nothing, or every problem at once: which layer, what is wrong, what to use instead.
Guarantees: all modules at any depth are known to treat each example alone. These are the exact
classes of `PER_EXAMPLE`, classes of common.models, and classes with a true class attribute
`per_example` of their own. Refused: batch norm, tracked instance norm, buffers (so both spectral
norms), parametrizations, hooks, in-place activations, dropout, unknown modules.
Not covered: a coupling written by hand into a marked class's forward; the probe on random items
finds most (`probe_shape`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigurationError

PER_EXAMPLE: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.SiLU,
    nn.GELU,
    nn.Mish,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.ParameterList,
    nn.ParameterDict,
)

# what is wrong with a class, and what to use instead
INSTEAD: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "normalises over the batch", "GroupNorm"),
    (
        nn.modules.instancenorm._InstanceNorm,
        "tracks statistics of the batch",
        "track_running_stats=False, or GroupNorm",
    ),
    (
        nn.modules.dropout._DropoutNd,
        "draws random numbers",
        "no dropout: clip and noise regularise",
    ),
    (nn.RNNBase, "is not known to treat each example alone", "Conv1d or Linear layers"),
    (nn.RNNCellBase, "is not known to treat each example alone", "Conv1d or Linear layers"),
    (
        nn.MultiheadAttention,
        "is not known to treat each example alone",
        "a module of your own, marked per_example = True",
    ),
)
UNKNOWN = (
    "is not known to treat each example alone",
    "a layer of PER_EXAMPLE, or mark your class per_example = True",
)


def check_model(module: nn.Module, probe_shape: Sequence[int] | None = None) -> None:
    """Raise ConfigurationError if a submodule can couple patients (E-MODEL, all problems at once).

    With `probe_shape`, the [C, H, W] of one input, random items are tried too: an item's output
    alone must equal its output in a batch, to 1e-5.
    """
    # every module at any depth
    problems = []
    for name, part in module.named_modules():
        for wrong, instead in _problems(part):
            problems.append(f"{name or 'model'}: {type(part).__name__} {wrong}: use {instead}")

    # the probe, on a model of known modules
    if not problems and probe_shape is not None and not _is_per_example(module, probe_shape):
        problems = [
            "model: an item's output changes with the other items of its batch: "
            "use layers that see one item"
        ]
    if problems:
        raise ConfigurationError(
            f"model refused by the private step: {problems[0]}",
            hint="use GroupNorm, out-of-place activations and no buffers",
            code="E-MODEL",
            problems=problems,
        )


def _problems(part: nn.Module) -> Iterator[tuple[str, str]]:
    """What is wrong with one module, and what to use instead."""
    # its class: known to treat each example alone
    kind = type(part)
    tracked = isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
    batch_norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
    if nn.utils.parametrize.is_parametrized(part):
        yield "has parametrized weights (new spectral or weight norm?)", "plain weights"
    elif tracked or batch_norm or not (kind in PER_EXAMPLE or _is_marked(kind)):
        yield _what_instead(part)

    # its state: nothing that outlives a call, or changes what another example sees
    if any(True for _ in part.buffers(recurse=False)):
        yield "keeps a buffer", "no buffers: what the model keeps is a parameter or a constant"
    if getattr(part, "inplace", False):
        yield "works in place", f"{kind.__name__}(inplace=False)"
    forward_hooks = part._forward_hooks or part._forward_pre_hooks
    if forward_hooks or part._backward_hooks or part._backward_pre_hooks:
        yield "carries a hook (old spectral or weight norm?)", "plain weights and no hooks"


def _what_instead(part: nn.Module) -> tuple[str, str]:
    """Why the class of a module is refused, and what to use instead."""
    for base, wrong, instead in INSTEAD:
        if isinstance(part, base):
            return wrong, instead
    return UNKNOWN


def _is_marked(kind: type[nn.Module]) -> bool:
    """Whether a class is one of common.models, or says of itself that it is per example."""
    return kind.__module__.startswith("common.models.") or vars(kind).get("per_example") is True


@torch.no_grad()
def _is_per_example(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether each of four random items has the same output alone as together."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    items = torch.randn((4, *shape), generator=draw).clamp(-1, 1).to(device)
    together = _tensors(module(items))
    each = [_tensors(module(items[i : i + 1])) for i in range(len(items))]
    # compare output by output: a module may return several tensors
    for parts, whole in zip(zip(*each, strict=True), together, strict=True):
        tolerance = 1e-5 * max(1.0, float(whole.abs().max()))
        if not torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=tolerance):
            return False
    return True


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    found: list[Tensor] = []
    for part in output:
        found += _tensors(part)
    return found
