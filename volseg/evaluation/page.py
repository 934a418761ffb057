"""Tables and pictures -> one self-contained HTML page. No script, no link to anywhere, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment, StrictUndefined

from volseg.evaluation.tables import Table

BANNER = "Research use only. Not a medical device: not for diagnosis or treatment decisions."


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page: tables, then figures (caption -> PNG bytes)."""

    heading: str
    tables: Sequence[Table] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    words: str = ""


def render_page(
    title: str,
    sections: Sequence[Section],
    *,
    lead: str = "",
    tiles: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    footer: str = "",
) -> str:
    """The page as text. `tiles` are the few figures everybody looks for, words -> value; `notes` what limits them."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inline"] = _inline
    template = environment.from_string(resources.files(__package__).joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        banner=BANNER, title=title, sections=sections, lead=lead, tiles=tiles or {}, notes=notes, footer=footer
    )


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
