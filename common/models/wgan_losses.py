"""The losses of critic and generator of the image + mask WGAN (docs/methods/dp-wgan.md)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from common.errors import Bug, ConfigurationError

PENALTY = 10.0


def critic_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Return the critic's loss over scores real [m] and fake [m·K]; it falls when real scores rise.

    - `wgan` and `wgan-gp`: D(f) - D(x); the penalty is `gradient_penalty`.
    - `hinge`: relu(1 - D(x)) + relu(1 + D(f)).
    - `logistic`: softplus(-D(x)) + softplus(D(f)).

    Raises Bug unless every item has the same number of fakes.
    """
    if len(real) == 0 or len(fake) == 0 or len(fake) % len(real):
        raise Bug(f"wgan: {len(real)} items and {len(fake)} fakes cannot be paired")
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "logistic":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind in ("wgan", "wgan-gp"):
        return fake.mean() - real.mean()
    raise ConfigurationError(f"wgan: loss: expected wgan, wgan-gp, hinge or logistic, got {kind!r}")


def gradient_penalty(
    score: Callable[[Tensor], Tensor], items: Tensor, fakes: Tensor, mix: Tensor
) -> Tensor:
    """Return 10·mean (|grad D(e·x + (1 - e)·f)| - 1)^2 (Gulrajani et al. 2017).

    Items x and fakes f are [m, C, H, W], mix e is [m]; `score` maps a batch to scores [m].
    torch.func computes it, so that it can stand inside a per-patient gradient.
    """
    share = mix[:, None, None, None]
    between = share * items + (1 - share) * fakes
    slopes: Tensor = grad(lambda x: score(x).sum())(between)
    norms = (slopes.flatten(1).square().sum(1) + 1e-12).sqrt()
    return PENALTY * (norms - 1).square().mean()


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """Return -D(f), or softplus(-D(f)) for `logistic`, averaged over scores [n]."""
    if kind == "logistic":
        return F.softplus(-fake).mean()
    return -fake.mean()
