"""Clears the output of one training round.

In: `Output`. Out: `Cleared`.
Guarantees: the update passed the gate (10), which counts its canaries once.
"""

from __future__ import annotations

from client.daemon.rounds import Output
from client.egress.gate import Cleared, Gate
from client.egress.review import Reviews
from client.state.canaries import TALLY_CAP_BYTES, Tallies
from client.state.group_store import GroupStore
from client.state.jobs import OUTPUT, OUTPUT_CAP_BYTES, TALLY
from client.state.records import Records
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.tally import Tally
from common.storage.files import read_capped
from common.wire.tensors import read


def clear(output: Output, records: Records, reviews: Reviews) -> tuple[Cleared, ...]:
    """Return the cleared update of a round; raises RefusedError with the gate's code."""
    header = output.round.header
    study = output.round.study
    assert output.reservation is not None
    assert isinstance(output.event, SubsampledGaussian)
    # what the child left
    payload = read_capped(output.folder / OUTPUT, OUTPUT_CAP_BYTES)
    with GroupStore(records.state.groups) as groups:
        gate = Gate.of(records, study, groups, reviews)
        tallies = _tallies(output, records)
        # (10) the gate clears what leaves
        cleared = gate.clear_update(
            header, payload, output.round.expected, output.reservation, output.event, tallies
        )
    return (cleared,)


def _tallies(output: Output, records: Records) -> Tallies | None:
    """What was measured in the round, alone and with the rounds that were answered before."""
    study = output.round.study
    if not study.privacy.canaries:
        return None
    latest = Tally.from_arrays(read(output.folder / TALLY, max_bytes=TALLY_CAP_BYTES))
    header = output.round.header
    return records.canaries(study, header.model).with_round(header.round, latest)
