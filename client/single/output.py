"""What `kohort-site privatize` writes: numbered images, the statement, and sheets for the staff."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw

from client.ingest.synthetic_dicom import write_synthetic
from client.single.flow import Flow
from client.single.request import Request
from common.arrays import Images
from common.storage.files import atomic_write

ON_SITE = "ON-SITE-ONLY"  # begins the name of every file that shows originals
COLUMNS = 6
GAP_PX = 8
HEAD_PX = 16
MIN_WIDTH_PX = 420


def write_images(request: Request, flow: Flow, images: Sequence[Images]) -> None:
    """Write the images under numbers, and the statement."""
    modality = flow.study.intake.dicom_modalities[0]
    for number, image in enumerate(images, 1):
        name = f"{number:05d}"
        if request.dicom:
            data = write_synthetic(image, modality, flow.statement)
            atomic_write(request.target / f"{name}.dcm", data, mode=0o600)
        else:
            atomic_write(request.target / f"{name}.png", png(image), mode=0o600)
    facts = {
        **flow.mechanism.describe(),
        "statement": flow.statement,
        "plan": flow.study.hash(),
        "exported": request.export,
    }
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    atomic_write(request.target / "statement.json", text.encode(), mode=0o600)


def png(image: Images) -> bytes:
    """Return the PNG bytes of uint8 [H, W, 1 or 3], without any text chunk."""
    stream = io.BytesIO()
    _picture(image).save(stream, "PNG")
    return stream.getvalue()


def comparison_sheet(
    originals: Sequence[Images], privatized: Sequence[Images], title: str
) -> bytes:
    """Return a PNG sheet: each original to the left of its privatized image. On site only."""
    height, width = originals[0].shape[:2]
    step_x = 2 * width + GAP_PX
    step_y = height + GAP_PX
    columns = min(COLUMNS, len(originals))
    rows = -(-len(originals) // COLUMNS)
    size = (max(step_x * columns, MIN_WIDTH_PX), step_y * rows + HEAD_PX)
    sheet = Image.new("RGB", size, "white")
    ImageDraw.Draw(sheet).text((4, 2), f"original | privatized: {title}", fill="black")
    for i, pair in enumerate(zip(originals, privatized, strict=True)):
        x = step_x * (i % COLUMNS) + GAP_PX // 2
        y = step_y * (i // COLUMNS) + HEAD_PX
        for side, image in enumerate(pair):
            sheet.paste(_picture(image).convert("RGB"), (x + side * width, y))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def inputs_table(names: Sequence[str]) -> bytes:
    """Return the CSV that says which number is which input. On site only."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator=os.linesep)
    writer.writerow(("number", "input"))
    writer.writerows(enumerate(names, 1))
    return table.getvalue().encode()


def _picture(image: Images) -> Image.Image:
    """Return uint8 [H, W, 1 or 3] as a picture."""
    if image.shape[-1] == 1:
        return Image.fromarray(image.squeeze(-1))
    return Image.fromarray(image)
