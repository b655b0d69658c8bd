"""The contact sheet: released images beside their nearest real ones."""

import io

import numpy as np
from PIL import Image

from client.egress import audit as au
from client.egress import contact_sheet
from tests.photographs import photographs

REAL = photographs(30)


def test_the_contact_sheet_shows_released_beside_nearest_real() -> None:
    report = au.audit(REAL[[5, 6]], REAL)
    data = contact_sheet.contact_sheet(REAL[[5, 6]], REAL, report)
    assert data == contact_sheet.contact_sheet(REAL[[5, 6]], REAL, report)
    sheet = Image.open(io.BytesIO(data))
    assert (sheet.format, sheet.size, sheet.info) == ("PNG", (2 * 140, 82), {})
    pixels = np.asarray(sheet)
    assert (pixels[:64:2, :64:2] == REAL[5]).all()
    assert (pixels[:64:2, 64:128:2] == REAL[5]).all()
