"""One HTML page with a picture inside, tables and texts; and tables as text. Used by the reports."""

from __future__ import annotations

import base64
import html
from pathlib import Path

Row = dict[str, str]  # column -> cell; all rows of a table have the same columns

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; color: #222 }}
img {{ max-width: 100% }} table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3em .8em; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
pre {{ background: #f6f6f6; padding: 1em; overflow-x: auto }}
</style></head><body><h1>{title}</h1>
<img alt="{alt}" src="data:image/png;base64,{picture}">
{tables}{texts}</body></html>
"""


def _table(rows: list[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def write_page(
    path: Path,
    title: str,
    picture: Path,
    alt: str,
    tables: list[list[Row]],
    texts: dict[str, str],
) -> None:
    """A page that needs no other file; `texts` are shown as they are under their headings."""
    shown = "".join(
        f"<h2>{html.escape(heading)}</h2><pre>{html.escape(text)}</pre>"
        for heading, text in texts.items()
    )
    page = PAGE.format(
        title=html.escape(title),
        alt=html.escape(alt),
        picture=base64.b64encode(picture.read_bytes()).decode(),
        tables="".join(map(_table, tables)),
        texts=shown,
    )
    path.write_text(page, encoding="utf-8")


def print_table(rows: list[Row]) -> None:
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        print("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
