"""Which persons are grouped, by name."""

from __future__ import annotations

import numpy as np

from client.child.rosters import keep_accepted, person_names
from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.group_store import Group, Stratum
from client.synthesize.group import Roster
from tests.sites import Hospital, pseudonym


def test_a_person_keeps_the_name_under_which_a_group_was_frozen(hospital: Hospital) -> None:
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    object.__setattr__(cohort, "aliases", ((pseudonym(0), "old name"), *cohort.aliases[1:]))
    frozen = Group(("old name", *(pseudonym(p) for p in range(1, 5))), Stratum(0, 2), 5)
    names = person_names(cohort, (frozen,))
    assert names[0] == "old name"
    assert names[1:] == cohort.pseudonyms[1:]


def test_a_patient_without_an_accepted_image_is_not_on_the_roster_of_averages() -> None:
    """Such a patient would count to k and contribute nothing."""
    strata = (Stratum(0), Stratum(1), Stratum(0))
    who = Roster(("a", "b", "c"), strata, ((0, 3), (1,), (2, 4)))
    kept = keep_accepted(who, np.array([True, False, False, False, True]))
    assert kept == Roster(("a", "c"), (Stratum(0), Stratum(0)), ((0,), (4,)))
