"""What a monitoring system reads: one line, and the exit code of a plugin."""

from __future__ import annotations

from common.alerts import Alert, exit_code, monitor_line

WARNING = Alert("warning", "SITE-SILENT", "hospital-a: silent", "ask the hospital")
ERROR = Alert("error", "E-QUORUM", "study demo\nis | paused", "kohort-server study extend demo")


def test_no_alert_is_ok_a_warning_1_an_error_2() -> None:
    assert [exit_code(found) for found in ([], [WARNING], [WARNING, ERROR])] == [0, 1, 2]


def test_the_line_is_one_line_errors_first_without_performance_data() -> None:
    assert monitor_line("running", []) == "OK: running"
    line = monitor_line("running", [WARNING, ERROR])
    assert line == (
        "CRITICAL: E-QUORUM: study demo is / paused (kohort-server study extend demo); "
        "SITE-SILENT: hospital-a: silent (ask the hospital)"
    )
    assert WARNING.line == "warning: SITE-SILENT: hospital-a: silent; ask the hospital"
