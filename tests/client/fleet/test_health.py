"""Every declared state has its words."""

from __future__ import annotations

from client.fleet import health as states


def test_every_state_has_a_text_and_what_is_not_info_a_fix() -> None:
    for state in states.STATES.values():
        assert state.text
        assert state.fix or state.severity == "info"
