"""What client/ingest reads: modalities, transfer syntaxes, pixel formats."""

from __future__ import annotations

from typing import get_args

from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS
from pydicom.uid import UID

from client.ingest.codecs import is_readable
from client.ingest.dicom_header import COLOUR, GREY
from client.ingest.stills import READ
from common.study.intake import Intake
from docs.generator.markdown import page, table


def inputs_page() -> str:
    """Return the page of supported inputs."""
    modalities = get_args(Intake.model_fields["dicom_modalities"].annotation)[0]
    readable = [UID(uid) for uid in _PIXEL_DATA_DECODERS if is_readable(UID(uid))]
    rows = [(uid.name, f"`{uid}`") for uid in sorted(readable)]
    grey = ", ".join(sorted(GREY))
    colour = ", ".join(sorted(COLOUR))
    return page(
        "Supported inputs",
        "Files are known by their content: DICOM (with its DICM mark), photographs, and NIfTI for",
        "masks. [Data](../hospital/data.md) says which studies read which, and",
        "[kinds of input](intake-kinds.md) what is done about unusual ones.",
        "",
        f"- Photographs: {', '.join(sorted(READ))}; 8 bits a sample, 16 bits of grey or colour.",
        f"- DICOM modalities: {', '.join(get_args(modalities))}.",
        f"- Photometric interpretations: {grey}; {colour}; PALETTE COLOR.",
        "- 8 or 16 bits allocated, 2 to 16 bits stored, whole numbers.",
        "",
        "## Transfer syntaxes",
        "",
        *table(("Transfer syntax", "UID"), rows),
    )
