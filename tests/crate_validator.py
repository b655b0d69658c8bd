"""Validates RO-Crates with roc-validator, without a network: its own process and packages.

Usage: python -S tests/crate_validator.py CRATE..., with .venv/validators in PYTHONPATH.
It prints a JSON list of the problems of each crate that the specification forbids.

The validator looks the JSON-LD context up at w3id.org. Here the context that comes with the package
rocrate stands in. It is that of RO-Crate 1.3: the terms that releases use are the same in both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import requests
import rocrate
from rocrate_validator import services
from rocrate_validator.models import Severity, ValidationSettings
from rocrate_validator.utils.http import HttpRequester

ADDRESS = "https://w3id.org/ro/crate/1.2/context"
CONTEXT = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"


def answer(_: HttpRequester, url: str, **__: Any) -> requests.Response:
    """The context from this machine; nothing else is there."""
    response = requests.Response()
    response.url = url
    response.status_code = 504
    if url == ADDRESS:
        response.status_code = 200
        response._content = CONTEXT.read_bytes()
        response.headers["Content-Type"] = "application/ld+json"
    return response


def problems(crate: str) -> list[str]:
    """What the validator finds in one crate."""
    settings = ValidationSettings(
        rocrate_uri=crate,
        profile_identifier="ro-crate-1.2",
        requirement_severity=Severity.REQUIRED,
        skip_availability_check=True,
        offline=True,
    )
    found = services.validate(settings).get_issues()
    return [f"{issue.severity.name}: {issue.message}" for issue in found]


HttpRequester.get = answer
sys.stdout.write(json.dumps([problems(crate) for crate in sys.argv[1:]]))
