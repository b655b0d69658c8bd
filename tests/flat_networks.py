"""Stand-ins for networks where a test is about what is done with their numbers."""

import torch


class Colours:
    """Features that are mean colours."""

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Plain:
    """A generator whose image is one colour: its code."""

    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        return codes[:, 0, :, None, None].expand(-1, -1, 16, 16)
