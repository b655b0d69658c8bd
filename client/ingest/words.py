"""What hospitals call columns and sides: words of several languages, compared in one spelling.

In: a header's name, or a cell of the column `laterality`.
Out: one of our columns that the name may mean; a side.
Guarantees: a word that is not listed is no side, never a guess.
Not covered: labels, whose words a hospital maps itself (data.values of site.yaml).
"""

from __future__ import annotations

import re
import unicodedata

UNKNOWN_SIDE = 0
LEFT = 1
RIGHT = 2

# letters that are one sign with a mark in print, and no mark in Unicode
LETTERS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d"})


def plain(text: str) -> str:
    """Return a word as it is compared: without case, marks on letters, and double spaces."""
    folded = " ".join(text.split()).casefold().translate(LETTERS)
    decomposed = unicodedata.normalize("NFKD", folded)
    kept = (sign for sign in decomposed if not unicodedata.combining(sign))
    return unicodedata.normalize("NFC", "".join(kept)).casefold()


def _words(text: str) -> frozenset[str]:
    """The plain words of a list."""
    return frozenset(plain(text).split())


# one letter alone stands for a side in English, German and DICOM; others mean too many things
LEFT_WORDS = _words(
    "l left os le la oi og oe lt li links linke linkes linker linkerzijde gauche izquierdo "
    "izquierda sinistro sinistra sinister sin sx esquerdo esquerda vanster venstre vasen lewy lewe "
    "lewa levy leve stang stanga bal sol αριστερο αριστερος левый левая левое 左"
)
RIGHT_WORDS = _words(
    "r right od re ra rt rechts rechte rechtes rechter rechterzijde droit droite derecho derecha "
    "destro destra dexter dex dx direito direita hoger hojre høyre oikea prawy prawe prawa "
    "pravy prave drept dreapta jobb sag δεξι δεξιος правый правая правое 右"
)
# both sides, none, or not said: such a row speaks for either
OPEN_WORDS = _words(
    "b u ou ao odg ods both beide beides beidseits bilateral unpaired unknown unbekannt inconnu "
    "desconocido sconosciuto none na nan null"
)
EYE_WORDS = _words(
    "eye eyes auge augen oeil yeux ojo ojos occhio occhi olho olhos oog oga oye øye øje silma oko "
    "ochiul szem goz side seite cote lado lato μάτι глаз 眼"
)

# what columns are often called, in letters and digits alone; only ever proposed, never taken
OFTEN_CALLED: dict[str, tuple[str, ...]] = {
    "patient": tuple(
        "patientid patientenid patientennummer patnr patid pid pseudonym fallnummer mrn subject "
        "subjectid idpatient idpaciente idpaziente numeropatient paciente paziente id".split()
    ),
    "file": tuple(
        "filename filepath path image imageid imagename imagefile bild bildname datei dateiname "
        "dateipfad fichier nomfichier archivo imagen nomefile immagine bestand".split()
    ),
    "label": tuple(
        "labels class grade grading diagnosis diagnose diagnostic diagnostico diagnosi befund "
        "klasse stadium grad finding category".split()
    ),
    "laterality": tuple(
        "side eye lr seite auge cote oeil lado ojo lato occhio lateralite lateralitaet "
        "lateralitat lateralidad lateralita imagelaterality oog".split()
    ),
    "mask": tuple("maske masque mascara maschera segmentation maskfile".split()),
}


def side_of(text: str) -> int | None:
    """Return the side that a cell names: 1 left, 2 right, 0 both or not said; None if unknown.

    Words for an eye beside it do not count: `left eye` is `left`. `O.D.` is `od`.
    """
    words = re.findall(r"[^\W\d_]+", plain(text).replace(".", ""))
    rest = [word for word in words if word not in EYE_WORDS]
    letters = "".join(filter(str.isalnum, plain(text)))
    if not letters or letters in OPEN_WORDS:
        return UNKNOWN_SIDE
    if not rest or not letters.isalpha():
        return None
    sides = {_side(word) for word in rest}
    if None in sides:
        return None
    if len(sides) == 1:
        return sides.pop()
    # `R/L`: both
    return UNKNOWN_SIDE


def _side(word: str) -> int | None:
    """The side of one plain word."""
    if word in LEFT_WORDS:
        return LEFT
    if word in RIGHT_WORDS:
        return RIGHT
    return UNKNOWN_SIDE if word in OPEN_WORDS else None


def proposed_column(name: str) -> str | None:
    """Return our column that a header's name often means; None if it means none that we know."""
    letters = "".join(filter(str.isalnum, plain(name)))
    for column, names in OFTEN_CALLED.items():
        if letters == column or letters in names:
            return column
    return None
