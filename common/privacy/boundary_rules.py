"""The numbered rules of what may cross the hospital's line, and the error of a breach.

The numbers are the same in boundary.py, client/egress/gate.py, THREAT_MODEL.md and the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import RefusedError


@dataclass(frozen=True)
class Rule:
    """One numbered rule; `side` says who checks it."""

    number: int
    sentence: str
    side: str = "site and server"

    @property
    def code(self) -> str:
        """The stable code under which a breach is reported."""
        return f"E-GATE-{self.number:02d}"


_RULES = (
    Rule(
        1,
        "the header names this study, a kind, phase, model and round that the plan has, "
        "and a site of the plan",
    ),
    Rule(
        2,
        "the statement is the plan's own public constants, the SHA-256 of the global weights, "
        "a commitment to the site's head and the head of the operator's log that came, no more",
    ),
    Rule(3, "the payload has the header's SHA-256 and is no larger than the limit of its kind"),
    Rule(4, "the payload is canonical: one spelling of the same tensors, without metadata"),
    Rule(5, "an update has exactly the tensors of the global weights, by name"),
    Rule(6, "every tensor of an update is float32 and has the shape of its global weight"),
    Rule(7, "every number of an update is finite"),
    Rule(8, "a tensor that the plan does not train is zero throughout"),
    Rule(9, "the update's L2 norm over all tensors is at most the plan's max_update_norm"),
    Rule(
        10,
        "an image batch has exactly `images` uint8, `labels` int64 and `privatized` uint8, "
        "one entry an image",
    ),
    Rule(11, "every image has the plan's size and channels"),
    Rule(
        12,
        "a site's images, over all parts, are at least one "
        "and at most the plan's max_images_per_site",
    ),
    Rule(13, "every label is the index of one of the study's strata"),
    Rule(14, "a privatized flag is 0 or 1, and is 1 only where the plan privatizes"),
    Rule(
        15,
        "global weights hold every tensor that the plan does not train bit for bit as its "
        "starting checkpoint does; before the first round they are that checkpoint",
    ),
    Rule(
        16,
        "global weights are at most max_update_norm a round away from the starting checkpoint, "
        "and from those that the site saw last, in L2 and beside float32 rounding",
    ),
    Rule(
        17,
        "instructions come in the plan's order: no training round after a later one, synthesis "
        "after training, no training after synthesis",
        "site",
    ),
    Rule(18, "one round has one set of global weights", "site"),
    Rule(
        20,
        "the site's own staff approved this plan, and it is within the site's policy",
        "site",
    ),
    Rule(
        21,
        "the ledger holds a reservation of the plan's own event, committed to no other artefact",
        "site",
    ),
    Rule(
        22,
        "each image is of a group of at least k distinct patients of the cohort, "
        "k of the plan and of the policy",
        "site",
    ),
    Rule(
        23,
        "each image's group is frozen in the group store before it leaves, unless an epsilon per "
        "patient covers every image of the plan; its label is the image's",
        "site",
    ),
    Rule(24, "the audit of the batch passed", "site"),
    Rule(
        25,
        "as many persons of the site as its policy asks for approved exactly this batch, "
        "each signed",
        "site",
    ),
    Rule(
        26,
        "noise and clip, measured on canaries and on all trained tensors, match the plan's, "
        "and the lower bound on epsilon is at most what was spent",
        "site",
    ),
    Rule(
        27,
        "an image of one patient leaves only if plan and policy say so, at an epsilon per image "
        "within the policy's cap, and never in a batch",
        "site",
    ),
    Rule(
        28,
        "an image of a frozen group is one that was released of it before, byte for byte; a new "
        "one leaves only as a noised draw of an average that never left without noise, within the "
        "policy's max_epsilon_average over all its draws",
        "site",
    ),
)
RULES: dict[int, Rule] = {rule.number: rule for rule in _RULES}


def refuse(number: int, what: str, *, hint: str = "") -> RefusedError:
    """Return the error for a breach of rule `number`.

    `what` says expected against got and stays on this side.
    """
    rule = RULES[number]
    return RefusedError(f"rule {number} ({rule.sentence}): {what}", hint=hint, code=rule.code)


def require(holds: bool, number: int, what: str, *, hint: str = "") -> None:
    """Raise the error of rule `number` unless it holds."""
    if not holds:
        raise refuse(number, what, hint=hint)
