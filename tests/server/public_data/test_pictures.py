"""Contact sheets and triptychs."""

import numpy as np

from server.public_data.pictures import triptychs


def test_a_triptych_shows_image_mask_and_red_overlay() -> None:
    image, mask = np.full((1, 32, 32, 1), 100, np.uint8), np.zeros((1, 32, 32), np.uint8)
    mask[0, 4, 6] = 255
    (picture,) = triptychs(image, mask)
    assert picture.shape == (128, 3 * 128 + 4, 3)
    assert (picture[:, :128] == 100).all() and picture[18, 130 + 26].tolist() == [255] * 3
    red = picture[18, 260 + 26].tolist()
    assert red[0] > 150 and red[1] < 100 and picture[0, 260].tolist() == [100] * 3
