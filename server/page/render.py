"""Turns an `Overview` into one HTML document: its style inside it, no script, no other request.

Guarantees: every value is escaped, and a text between backticks is code and nothing else; the
document allows itself its own style, by digest, and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from server.operator.quota import GIB
from server.page.overview import Overview

PACKAGE = "server.page"
REFRESH_S = 30
STAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}[+-][0-9]{2}:[0-9]{2}")


def render_page(found: Overview, *, refresh: bool = False) -> str:
    """Return the document; with `refresh` a browser asks for it again every half minute."""
    template = _environment().get_template("page.html.j2")
    return template.render(
        found=found,
        standing=found.standing,
        alerts=found.alerts(),
        style=Markup(style()),
        policy=policy(framing=False),
        refresh_s=REFRESH_S if refresh else 0,
    )


def render_fault(code: str, text: str, hint: str) -> str:
    """Return the document that says why there is no page."""
    template = _environment().get_template("fault.html.j2")
    return template.render(
        code=code,
        text=text,
        hint=hint,
        style=Markup(style()),
        policy=policy(framing=False),
        refresh_s=REFRESH_S,
    )


def style() -> str:
    """Return the style sheet."""
    return files(PACKAGE).joinpath("templates/style.css").read_text(encoding="utf-8").strip()


def policy(*, framing: bool = True) -> str:
    """Return the Content-Security-Policy: this style sheet, and nothing else.

    `framing`: with what only a header can say.
    """
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    text = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return text + "; frame-ancestors 'none'" if framing else text


def spell_moment(moment: datetime | str | None) -> Markup:
    """Return a time as an element that programs read too; a text that is none stays a text."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return escape(moment)
    if moment is None:
        return Markup("never")
    machine = moment.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}">{}</time>').format(machine, _spell_utc(moment))


def mark_words(text: str) -> Markup:
    """Return a text whose parts between backticks are code, and whose times are short."""
    parts = STAMP.sub(lambda match: _shorten(match[0]), text).split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    marked = [escape(part) for part in parts]
    for number in range(1, len(parts), 2):
        marked[number] = Markup("<code>{}</code>").format(parts[number])
    return Markup("").join(marked)


def _shorten(stamp: str) -> str:
    """The same time to the minute; a stamp that is no time stays as it is."""
    try:
        return _spell_utc(datetime.fromisoformat(stamp))
    except ValueError:
        return stamp


def _spell_utc(moment: datetime) -> str:
    """A time to the minute, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def spell_gib(size_bytes: int) -> str:
    """Return a size in GiB."""
    return f"{size_bytes / GIB:.1f} GiB"


def _environment() -> jinja2.Environment:
    """Every value is escaped; an unknown name in a template is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": spell_moment, "words": mark_words, "gib": spell_gib}
    return environment
