"""Names for the arrays that the rooms hand to one another."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[np.uint8]  # [N, H, W, C]
Pairs: TypeAlias = NDArray[np.uint8]  # [N, H, W, C + 1]: the mask is the last channel
Pixels: TypeAlias = NDArray[np.uint8]  # one image: [H, W] or [H, W, C]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Labels: TypeAlias = NDArray[np.int64]  # [N]: a class for each image
Flags: TypeAlias = NDArray[np.bool_]
Weights: TypeAlias = Mapping[str, NDArray[np.generic]]  # a model's tensors by name
Deltas: TypeAlias = dict[str, NDArray[np.float32]]  # the change of each tensor in one round
