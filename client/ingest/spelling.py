"""Says when two ids are one id in two spellings: rules over text.

In: a patient id and its issuer, as a header or the labels file states them.
Out: a `Spelling`: what the id is called without regard to spelling, and what it may stand for.
Guarantees:
  - case, width, blanks, leading zeros and signs at the same places make no difference
  - numbers are never regrouped: 1-23 and 12-3 are two ids
  - an issuer is never dropped from an id on its own: 42 of one hospital is not 42 of another
Not covered: one person under two numbers; ids that were mistyped.

An id is read in parts: signs (blanks, hyphens, dots, slashes and the like) separate them, and zeros
that lead a part go. A sign between a letter and a digit goes too, because the change of kind
separates the parts anyway. A sign between two digits, or two letters, stays as a mark: without it
nobody could tell 1-23 from 12-3.

  owns    the id in parts; and run together, where that loses no mark
  claims  the id run together, where that loses a mark; the id without its issuer

Two ids that own one form are one person. An id is also the one that owns what it claims, unless
ids of different forms claim it: then nobody knows which of them is meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from client.state.people import Links, Spelling

SIGNS = frozenset("./\\,:;#()[]'\"`")
SIGN_KINDS = frozenset(
    {"Pd", "Pc", "Zs", "Zl", "Zp", "Cc"}
)  # hyphens, underscores, blanks, control
MARK = "-"
DECIMAL = re.compile(r"(\d+)[.,]0+")  # a number that a spreadsheet or a script wrote as 4711.0
LEADING_ZEROS = re.compile(r"^([^\W\d_]*)0+(?=\d)")
LEAST_DIGITS = 3  # before a word is taken for an issuer: 01-ABC is site and initials
ISSUER_LETTERS = (2, 12)
AUTHORITY = 3  # HL7 CX: id ^ check digit ^ check scheme ^ assigning authority


def spell(issuer: str, identifier: str) -> Spelling:
    """Return the forms of an id under its issuer, "" for none.

    An issuer may also stand in the id: behind ^ (HL7 CX), behind @, or as a word behind a sign.
    """
    text, word = _split_issuer(_clean(identifier))
    issued = "".join(_parts(_clean(issuer))) or word
    parts = _parts(text)
    if not parts:
        return Spelling((), ())
    if not issued:
        return _forms(parts, "")
    # the same id with the issuer as one more part, and without it
    bare = _forms(parts, "")
    if issued.isalpha():
        own = _forms([*parts, issued], "")
    else:
        own = _forms(parts, f"\0{issued}")
    return Spelling(own.owns, (*own.claims, *bare.owns, *bare.claims))


def is_dummy_uid(uid: str) -> bool:
    """Return whether a UID is one that names nothing, such as 0, 1.2.3.4 or 1.1.1.1.

    A UID is a registered root and a number below it. A dummy counts up, repeats one number, or has
    fewer than three components.
    """
    components = uid.split(".")
    counting = [str(number) for number in range(1, len(components) + 1)]
    return len(components) < 3 or components == counting or len(set(components)) == 1


def same_ids(spellings: Mapping[str, Spelling]) -> list[tuple[str, ...]]:
    """Return the names whose spellings make them one id, sorted; an id alone is left out."""
    links = Links()
    owners: dict[str, list[str]] = {}
    claimants: dict[str, list[str]] = {}
    for name, spelling in spellings.items():
        for form in spelling.owns:
            owners.setdefault(form, []).append(name)
        for form in spelling.claims:
            claimants.setdefault(form, []).append(name)
    # two ids that own one form are one
    for names in owners.values():
        links.join(names)
    # an id is also the one that owns what it claims; each such join can settle another claim
    claimed = [(owners[form], names) for form, names in claimants.items() if form in owners]
    while _settle(claimed, links):
        pass
    trees: dict[object, list[str]] = {}
    for name in spellings:
        trees.setdefault(links.root(name), []).append(name)
    return sorted(tuple(sorted(names)) for names in trees.values() if len(names) > 1)


def _settle(claimed: Iterable[tuple[list[str], list[str]]], links: Links) -> bool:
    """Join the owners of each form with the only id that claims it; return whether one did."""
    joined = False
    for owners, claimants in claimed:
        # of several ids that claim one form, nobody knows which is meant
        asking = {links.root(name) for name in claimants} - {links.root(owners[0])}
        if len(asking) == 1:
            links.join([owners[0], *asking])
            joined = True
    return joined


def _clean(text: str) -> str:
    """An id without case, width, invisible characters, national digits and decimals of zero."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    signs = []
    for sign in folded:
        if sign.isdecimal():
            signs.append(str(unicodedata.decimal(sign)))
        elif unicodedata.category(sign) != "Cf":
            signs.append(sign)
    found = "".join(signs).strip()
    whole = DECIMAL.fullmatch(found)
    return whole[1] if whole else found


def _is_sign(sign: str) -> bool:
    return sign in SIGNS or unicodedata.category(sign) in SIGN_KINDS


def _parts(text: str) -> list[str]:
    """The parts between signs."""
    return "".join(" " if _is_sign(sign) else sign for sign in text).split()


def _split_issuer(text: str) -> tuple[str, str]:
    """An id and the issuer that it names, "" for none."""
    # behind ^ or @
    stem, found, rest = text.partition("^")
    if not found:
        stem, found, rest = text.partition("@")
    if found and any(map(str.isdigit, stem)):
        components = [stem, *rest.split("^")]
        named = components[AUTHORITY] if len(components) > AUTHORITY else ""
        named = named or next(filter(None, reversed(components[1:])), "")
        return stem, "".join(_parts(named.partition("&")[0]))
    # a word behind a sign
    parts = _parts(text)
    word = parts[-1] if len(parts) > 1 else ""
    digits = sum(map(str.isdigit, "".join(parts[:-1])))
    fewest, most = ISSUER_LETTERS
    if word.isalpha() and fewest <= len(word) <= most and digits >= LEAST_DIGITS:
        return " ".join(parts[:-1]), word
    return text, ""


def _forms(parts: Iterable[str], ending: str) -> Spelling:
    """The forms of an id in parts."""
    stripped = [LEADING_ZEROS.sub(r"\1", part) for part in parts]
    written = stripped[0]
    for part in stripped[1:]:
        # between two digits or two letters the mark stays
        marked = written[-1].isdigit() == part[0].isdigit()
        written += MARK + part if marked else part
    together = LEADING_ZEROS.sub(r"\1", "".join(parts)) + ending
    if MARK in written:
        return Spelling((written + ending,), (together,))
    return Spelling(tuple(dict.fromkeys((written + ending, together))), ())
