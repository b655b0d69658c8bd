"""The licences that a release's metadata knows, with their terms of the Data Use Ontology (DUO).

DUO says for which purposes data may be used. Attribution and share-alike are no purposes: the
licence itself says them. A licence that is not listed gets no term.
"""

from __future__ import annotations

from dataclasses import dataclass

CREATIVE_COMMONS = "https://creativecommons.org"


@dataclass(frozen=True)
class DuoTerm:
    """A term of the Data Use Ontology: its code, such as DUO:0000004, and its label."""

    code: str
    label: str

    @property
    def address(self) -> str:
        """The term's permanent address."""
        return f"http://purl.obolibrary.org/obo/{self.code.replace(':', '_')}"


@dataclass(frozen=True)
class Licence:
    """A licence: its name for people, its address, and its DUO terms."""

    title: str
    address: str
    duo: tuple[DuoTerm, ...]


NO_RESTRICTION = DuoTerm("DUO:0000004", "no restriction")
NON_COMMERCIAL = DuoTerm("DUO:0000046", "non-commercial use only")
LICENCES = {
    "CC0-1.0": Licence(
        "Creative Commons Zero 1.0 Universal",
        f"{CREATIVE_COMMONS}/publicdomain/zero/1.0/",
        (NO_RESTRICTION,),
    ),
    "CC-BY-4.0": Licence(
        "Creative Commons Attribution 4.0 International",
        f"{CREATIVE_COMMONS}/licenses/by/4.0/",
        (NO_RESTRICTION,),
    ),
    "CC-BY-SA-4.0": Licence(
        "Creative Commons Attribution Share Alike 4.0 International",
        f"{CREATIVE_COMMONS}/licenses/by-sa/4.0/",
        (NO_RESTRICTION,),
    ),
    "CC-BY-NC-4.0": Licence(
        "Creative Commons Attribution Non Commercial 4.0 International",
        f"{CREATIVE_COMMONS}/licenses/by-nc/4.0/",
        (NO_RESTRICTION, NON_COMMERCIAL),
    ),
    "CC-BY-NC-SA-4.0": Licence(
        "Creative Commons Attribution Non Commercial Share Alike 4.0 International",
        f"{CREATIVE_COMMONS}/licenses/by-nc-sa/4.0/",
        (NO_RESTRICTION, NON_COMMERCIAL),
    ),
}
