"""The terms that the pages of a release use, each explained once.

In: the text of a page.
Out: the terms that occur in it.

A release is read offline, so it carries its own glossary; docs/glossary.md explains more terms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term, its meaning, and the pattern by which a page is searched for it."""

    name: str
    pattern: str
    meaning: str


TERMS = (
    Term(
        "Unit of protection",
        r"Unit of protection",
        "What one epsilon protects: here a patient with all of that patient's images at one site.",
    ),
    Term(
        "Site, consortium",
        r"\bsites?\b|consortium",
        "A site is one hospital of the study. The consortium is all of them together.",
    ),
    Term(
        "Plan",
        r"\bplan\b",
        "The file study.yaml of this release, signed by the operator. It fixes every constant of "
        "the study, and a site runs it only after approving it.",
    ),
    Term(
        "Update",
        r"\bupdates?\b",
        "What a site sends after a round of training: the change of the model's weights, after "
        "clipping and noise.",
    ),
    Term(
        "Differential privacy",
        r"differential(ly)?[- ]priva",
        "A property of a computation with random noise: its result is almost as likely with one "
        'patient\'s data as without them. Epsilon and delta say what "almost" means; a pair '
        "such as (8, 1e-05) names epsilon, then delta. It holds against every attacker, whatever "
        "the attacker knows about the other patients.",
    ),
    Term(
        "Epsilon, ε",
        r"\bepsilon\b|ε",
        "The bound on how much one unit can change the odds of any result: by a factor of e^ε at "
        "most. Smaller is more private: 1 allows a factor of 2.7, 8 a factor of 2,981. The text "
        "says what the unit is: a patient, an image, an average or a coordinate.",
    ),
    Term(
        "Delta, δ",
        r"\bdelta\b|δ",
        "A small probability beside epsilon: an outcome may be more likely than epsilon allows by "
        "at most delta.",
    ),
    Term(
        "Zero-out adjacency",
        r"zero-out",
        "Which data sets differential privacy compares: in one of them, all that one patient "
        "contributes is replaced by nothing. The number of patients on record stays the same.",
    ),
    Term(
        "Replace-one adjacency",
        r"replace-one",
        "Another choice of the data sets to compare: the images of one patient are replaced by "
        "any other images. The list of patients stays the same.",
    ),
    Term(
        "Add or remove one patient",
        r"add or remove one patient",
        "A third choice of the data sets to compare: one of them has one patient more.",
    ),
    Term(
        "Linked component",
        r"linked component",
        "All patient ids of one site that are joined by shared images. They count as one patient.",
    ),
    Term(
        "PLD, RDP",
        r"\bPLD\b|\bRDP\b",
        "Two accountants: programs that compose the privacy loss of all steps into one epsilon, "
        "by privacy loss distributions and by Rényi differential privacy. Both give upper "
        "bounds. PLD is the tighter one and the figure that counts.",
    ),
    Term(
        "Canary",
        r"canar(y|ies)",
        "An invented patient along a secret direction of the model, in the private steps. "
        "Whoever audits guesses from the result which canaries took part.",
    ),
    Term(
        "Lower bound on epsilon",
        r"[Ll]ower bound",
        "The least epsilon that explains how many guesses were right, at the stated confidence.",
    ),
    Term(
        "Gate",
        r"\bgate\b",
        "A site's last check: numbered rules that everything must pass before it may leave.",
    ),
    Term(
        "Ledger",
        r"\bledger\b",
        "A site's own list of everything that its patients' epsilon was spent on, over all plans. "
        "Nothing is spent that would pass the cap in the site's policy.",
    ),
    Term(
        "k-anonymity",
        r"k-anonymity|\bk ≥|\bk=",
        "Here: at least k different patients stand behind each released image. Alone it carries "
        "no epsilon.",
    ),
    Term(
        "Group",
        r"\b[Gg]roups?\b",
        "The patients, at least k, from whose images one released average is made. They share a "
        "label, and the side of the body where the plan separates sides.",
    ),
    Term(
        "Grouping: similar",
        r"Grouping: similar\b(?!-)",
        "Patients with similar images form a group. So the images decide who is in it.",
    ),
    Term(
        "Grouping: similar-swap",
        r"Grouping: similar-swap",
        "Patients with similar images form a group, then pairs are exchanged between groups to "
        "make them tighter. So the images decide who is in a group.",
    ),
    Term(
        "Grouping: cells",
        r"Grouping: cells",
        "Random groups among patients near the same public sample of the generator. Only that "
        "nearness depends on the images.",
    ),
    Term(
        "Grouping: random",
        r"Grouping: random",
        "A keyed hash of the patients' pseudonyms decides who is in a group. No image does.",
    ),
    Term(
        "Grouping: anchors",
        r"Grouping: anchors",
        "Patients are counted and summed around samples of the trained generator, the cells. "
        "An average is made from noisy sums and noisy counts alone. A cell is published if it "
        "holds k patients or more and its noisy count reaches the threshold.",
    ),
    Term(
        "Privatized image",
        r"[Pp]rivatized",
        "An average whose latents were clipped and given random noise before it was decoded.",
    ),
    Term(
        "Not evaluated",
        r"not evaluated",
        "Nothing is claimed: nobody measured it, or this release has nothing of the kind.",
    ),
    Term(
        "Latent",
        r"\blatents?\b|\bd=",
        "The numbers, called coordinates, from which a model makes an image. d is the number of "
        "them that carry patients' data.",
    ),
    Term(
        "Whitened code",
        r"whitened code",
        "The numbers that describe an image to the generator, scaled by public statistics.",
    ),
    Term(
        "Gaussian, Laplace, sigma",
        r"[Gg]aussian|[Ll]aplace|sigma",
        "Gaussian and Laplace are distributions of noise. Sigma is the standard deviation of the "
        "noise divided by the most that one unit can change the sum.",
    ),
    Term(
        "Clip; box, l1_ball, l2_ball",
        r"l1_ball|l2_ball|laplace box|box of|clipp",
        "To clip is to move what is too large to the edge of an allowed set, which bounds each "
        "patient's influence. Sets of latents: the box limits every coordinate, the l1_ball the "
        "sum of magnitudes, the l2_ball the Euclidean length.",
    ),
    Term(
        "Basis",
        r"\b[Bb]asis of the latents",
        "Directions of the latents, found on public images. Only these directions are released.",
    ),
    Term(
        "Expected cosine",
        r"expected cosine",
        "How near a noisy latent is to the true one on average: 1 is the same direction, 0 is no "
        "relation. A low value still gives a crisp image, of nobody.",
    ),
    Term(
        "Principal directions",
        r"principal directions",
        "The directions in which public samples of the generator vary most.",
    ),
    Term(
        "Roster",
        r"\broster\b",
        "A site's list of the patients that take part, each with a label.",
    ),
    Term(
        "Generator",
        r"\bgenerator\b",
        "The network that makes images out of random numbers.",
    ),
    Term(
        "Post-processing",
        r"[Pp]ost-processing",
        "Whatever is computed from a private result without looking at the data again. It costs "
        "no further epsilon.",
    ),
    Term(
        "Starting checkpoint",
        r"starting checkpoint",
        "The weights from which the training begins: made from public images, or, in the next "
        "version of a study, those that its earlier version was left with.",
    ),
    Term(
        "Reference",
        r"Reference:|[Rr]eference",
        "Public images to which the release is compared.",
    ),
    Term(
        "Rehearsal",
        r"[Rr]ehears",
        "A run of the same plan on public data, where it is known who took part. The members "
        "took part; nothing was trained on the held-out people.",
    ),
    Term(
        "Real against real",
        r"real against real",
        "The same figure between two halves of the reference, with no patient in both. It "
        "shows what real images reach.",
    ),
    Term(
        "Fréchet distance, kernel distance",
        r"Fréchet|kernel distance|\bMMD\b",
        "How far two sets of images are from each other in features of a network that was "
        "trained on everyday photographs. 0 is the same distribution. The kernel distance is "
        "unbiased, so it may be slightly negative. MMD is "
        "the maximum mean discrepancy, its formula.",
    ),
    Term(
        "k-Same-Pixel, mean image",
        r"k-Same-Pixel|mean image",
        "What classical averaging of pixels reaches: each reference image averaged with those most "
        "like it, and one image for all. A release should be nearer than both.",
    ),
    Term(
        "Precision, recall",
        r"\bprecision\b|\brecall\b",
        "Precision is the share of released images that look like reference images. Recall is "
        "the share of reference images that look like released ones.",
    ),
    Term(
        "Nearest reference ratio",
        r"nearest reference ratio",
        "The distance of a released image to its nearest reference image, divided by the same "
        "distance among reference images.",
    ),
    Term(
        "Downstream",
        r"[Dd]ownstream",
        "What a classifier learns from the release, tested on real people that it never saw.",
    ),
    Term(
        "Kappa, macro-F1",
        r"[Kk]appa|macro-F1",
        "Cohen's kappa is agreement beyond chance: 0 is chance, 1 is perfect. Macro-F1 is the "
        "mean over labels of F1, the balance of precision and recall of a label.",
    ),
    Term(
        "Membership inference",
        r"membership inference",
        "An attack that tells who took part from who did not.",
    ),
    Term(
        "AUC",
        r"\bAUC\b",
        "The probability that an attacker ranks a member above a non-member: 0.5 is a guess, 1 "
        "is certainty.",
    ),
    Term(
        "Linkage",
        r"\blinkage\b",
        "An attack that says which patient is in which released image.",
    ),
    Term(
        "Re-identification",
        r"re-identification",
        "An attack that finds a known person among released images.",
    ),
    Term(
        "DSC, Dice",
        r"\bDSC\b|\bDice\b",
        "The overlap of a predicted mask with the true one: 0 is none, 1 is perfect.",
    ),
    Term(
        "Hausdorff distance",
        r"Hausdorff",
        "How far the outlines of two masks are apart.",
    ),
)


def terms_in(text: str) -> list[Term]:
    """Return the terms that `text` uses, and those that their meanings use."""
    chosen: list[Term] = []
    while True:
        meanings = " ".join(term.meaning for term in chosen)
        found = [term for term in TERMS if re.search(term.pattern, f"{text} {meanings}")]
        if found == chosen:
            return found
        chosen = found
