"""Renders the texts of a release from the template files in templates/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from server.release.glossary import terms_in

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return the filled-in template; values are escaped in `.html.j2`, nowhere else."""
    return _environment().get_template(template).render(**values)


def render_with_glossary(template: str, **values: Any) -> str:
    """Return the filled-in template with a glossary of the terms that its text uses."""
    text = render(template, glossary=[], **values)
    return render(template, glossary=terms_in(text), **values)


def _environment() -> jinja2.Environment:
    """An unknown name in a template is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
