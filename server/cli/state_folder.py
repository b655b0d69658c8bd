"""Opens what lies in the operator's state folder; the commands need both rooms' functions."""

from server.operator.opening import (
    check_set_up,
    load_operator_key,
    load_operator_public,
    open_registry,
)
from server.rounds.studies import find_study, open_record, read_studies

__all__ = [
    "check_set_up",
    "find_study",
    "load_operator_key",
    "load_operator_public",
    "open_record",
    "open_registry",
    "read_studies",
]
