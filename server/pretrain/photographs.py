"""The public photographs of one pretraining, from which its steps draw batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from server.pretrain.gan_plan import PretrainPlan
from server.public_data.augmentation import shown, tint, views
from server.public_data.cameras import Batch, all_in_look, mean_look, other_cameras
from server.public_data.images import Source
from server.public_data.sources import draw_shares

VIEWS = 6  # of each photograph, where no other cameras are shown


class Photographs:
    """The photographs of `source` as `plan` shows them.

    `plain` is the source as the networks know it without any change: at the plan's size and, under
    `plan.cameras`, in one look.
    """

    def __init__(self, source: Source, plan: PretrainPlan, device: torch.device) -> None:
        self.size_px = plan.size_px
        self.look = None
        self.plain = source
        shares = draw_shares(source)
        if plan.cameras:
            self.look = mean_look(source.images, shares)
            images = all_in_look(source.images, self.look, plan.size_px)
            self.plain = replace(source, images=images)
        count = 1 if plan.cameras else VIEWS
        self.pixels, self.sides = views(source, count, np.random.default_rng(plan.seed), device)
        repeats = len(self.pixels) // len(shares)
        self.shares = np.tile(shares, repeats) / repeats

    def draw(
        self, count: int, rows: np.random.Generator, values: torch.Generator
    ) -> tuple[Batch, Tensor]:
        """Return `count` photographs and their sides [count]."""
        chosen = torch.as_tensor(rows.choice(len(self.pixels), size=count, p=self.shares))
        x = shown(self.pixels[chosen.to(self.pixels.device)])
        sides = self.sides[chosen]
        if self.look is not None:
            return other_cameras(x, sides, self.size_px, self.look, values), sides
        x = tint(x, values)
        return Batch(x, x, torch.ones_like(x[:, :1])), sides
