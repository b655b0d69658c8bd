"""`kohort-server publish` and `withdraw`, as an operator types them; `status` before the end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import ConfigurationError, PolicyError
from kohort.catalogue import TIME, parse_time
from server.operator.expiry import ending_certificates
from server.operator.published import read_published
from server.operator.state import ServerState
from tests.catalogues import Operator, operator
from tests.server.cli.reports import Kohort


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return operator(tmp_path_factory.mktemp("cli") / "o", "1.0.0")


def test_an_operator_publishes_withdraws_and_is_told_before_the_end(
    built: Operator, tmp_path: Path, kohort: Kohort
) -> None:
    eyes = built.copy(tmp_path / "eyes")
    state = eyes.root / "state"
    (state / "server.yaml").write_text(
        "name: eyes\nurl: https://localhost:9443\n"
        'catalogue:\n  title: "The eye consortium"\n  url: https://data.example.org\n  days: 30\n'
    )
    place = ("--state", state, "--out", eyes.site)
    code, output, errors = kohort("publish", *place, "--releases", eyes.releases)
    assert code == 0, errors
    assert "new in the catalogue: small 1.0.0" in output
    assert "shows catalogue 1: 1 releases, 0 withdrawn" in output
    page = (eyes.web / "small-1.0.0.html").read_text()
    assert "The eye consortium" in page and "--from https://data.example.org" in page
    code, output, _ = kohort("publish", *place)
    assert code == 0 and "still shows catalogue 1" in output

    # what a typing mistake ends with
    typed = ("withdraw", "small", "1.0.0", *place)
    code, _, errors = kohort(*typed, "--reason", "because", "--sentence", "x")
    assert code == ConfigurationError.exit_code and "privacy (a promise" in errors
    code, _, errors = kohort(*typed, "--reason", "quality", "--sentence", "x" * 301)
    assert code == ConfigurationError.exit_code and "at most 300" in errors
    code, _, errors = kohort("publish", *place, "--releases", tmp_path / "nowhere")
    assert code == ConfigurationError.exit_code and "no such folder" in errors

    code, output, errors = kohort(*typed, "--reason", "quality", "--sentence", "Exchanged labels.")
    assert code == 0, errors
    assert "withdrawn small 1.0.0" in output and "0 releases, 1 withdrawn" in output
    code, _, errors = kohort(*typed, "--reason", "quality", "--sentence", "Exchanged labels.")
    assert code == PolicyError.exit_code and "withdrawn already" in errors
    code, output, _ = kohort("publish", *place, "--releases", eyes.releases)
    assert code == 0 and "withdrawn, and stays out: small 1.0.0" in output
    code, output, _ = kohort("log", "--state", state, "--json")
    events = [json.loads(line)["event"] for line in output.splitlines()]
    assert events.count("release-withdrawn") == 1 and events.count("catalogue-published") == 2


def test_the_end_of_a_catalogue_is_named_like_that_of_a_certificate(
    built: Operator, tmp_path: Path
) -> None:
    eyes = built.copy(tmp_path / "eyes")
    now = datetime.now(UTC)
    eyes.publish(now)
    state = ServerState(eyes.root / "state")
    signed = read_published(state)
    assert signed is not None
    ends = parse_time(signed.catalogue.expires)
    assert ends.strftime(TIME) == signed.catalogue.expires
    assert ending_certificates(state, {}, now) == []
    (ending,) = ending_certificates(state, {}, ends - timedelta(days=10))
    assert ending.severity == "warning"
    assert ending.line.startswith(f"the catalogue ends on {ends:%Y-%m-%d}: `kohort-server publish")
    (ended,) = ending_certificates(state, {}, ends + timedelta(days=1))
    assert ended.severity == "error" and "the catalogue ended on" in ended.line
    # what cannot be read is said by who publishes, and stops no status
    (state.root / "catalogue.json").write_text("{")
    assert ending_certificates(state, {}, ends) == []
