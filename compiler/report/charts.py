"""Charts as files: Vega-Altair draws them, vl-convert writes them without a browser.

Both belong to the optional dependency `ppuc[charts]`, loaded when a chart is requested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppuc.ir.errors import UsageError
from ppuc.ir.files import write_file

FORMATS = (".svg", ".png", ".html")
"""File formats of charts."""

MOST_SERIES = 20
"""Maximum distinguishable lines of one chart."""


def require_chart_file(path: Path, option: str) -> None:
    """Raise UsageError if no chart can be written to `path`: an unknown format, or missing libraries."""
    where = f"{option} {path}"
    if path.suffix.lower() not in FORMATS:
        expected = f"a name that ends in {', '.join(FORMATS)}"
        raise UsageError.of(where, "is not a chart format", got=path.suffix or "no suffix", expected=expected)
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        hint = "pip install 'ppuc[charts]'"
        raise UsageError.of(where, "needs the libraries that draw charts", got=str(error), hint=hint) from None


def line_chart(title: str, rows: Sequence[Mapping[str, Any]], x: str, y: str, series: str | None) -> dict[str, Any]:
    """A Vega-Lite specification: `y` over `x` (column names, which become the axes' titles), with a line and a legend
    entry for each value of column `series`, in the order of the rows."""
    import altair as alt

    names = list(dict.fromkeys(str(row[series]) for row in rows)) if series is not None else []
    data = [{"x": row[x], "y": row[y], "series": str(row[series]) if series is not None else ""} for row in rows]
    values: Any = {"values": data}
    chart = alt.Chart(values, title=title, width=560, height=340).mark_line(point=True)
    encoded: dict[str, Any] = {
        "x": alt.X("x:Q", title=x, scale=alt.Scale(zero=False)),
        "y": alt.Y("y:Q", title=y, scale=alt.Scale(zero=True)),
    }
    if series is not None:
        encoded["color"] = alt.Color("series:N", title=series, sort=names)
    specification: dict[str, Any] = json.loads(chart.encode(**encoded).to_json())
    return specification


def scatter_chart(title: str, rows: Sequence[Mapping[str, Any]], x: str, y: str, series: str) -> dict[str, Any]:
    """A Vega-Lite specification: points of `y` against `x` (columns, which become titles of the axes) on equal
    logarithmic axes, coloured by column `series`, and the line on which both are the same. In a page, a point shows its
    row."""
    import altair as alt

    keys = [f"c{i}" for i in range(len(rows[0]))]  # Vega-Lite gives dots and brackets of names a meaning
    key = dict(zip(rows[0], keys, strict=True))
    ends = [float(row[axis]) for row in rows for axis in (x, y)]
    low, high = min(ends) / 1.2, max(ends) * 1.2
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    across, up = (alt.X(f"{key[x]}:Q", title=x, scale=scale), alt.Y(f"{key[y]}:Q", title=y, scale=scale))
    colour = alt.Color(f"{key[series]}:N", title=series, sort=list(dict.fromkeys(row[series] for row in rows)))
    values: Any = {"values": [dict(zip(keys, row.values(), strict=True)) for row in rows]}
    points = alt.Chart(values).mark_point(filled=True, opacity=0.7)
    points = points.encode(across, up, colour, tooltip=[alt.Tooltip(f"{key[name]}:N", title=name) for name in key])
    same: Any = {"values": [{key[x]: end, key[y]: end} for end in (low, high)]}
    line = alt.Chart(same).mark_line(color="grey", strokeDash=[4, 4]).encode(across, up)
    chart = alt.layer(line, points).properties(title=title, width=440, height=440)
    specification: dict[str, Any] = json.loads(chart.to_json())
    return specification


def write_chart(specification: Mapping[str, Any], path: Path) -> None:
    """Write a chart in the format of the file's suffix; HTML pages embed their scripts. Raises UsageError if the file
    cannot be written."""
    import vl_convert

    text = json.dumps(specification)
    if path.suffix.lower() == ".png":
        data = vl_convert.vegalite_to_png(text, scale=2.0)
    elif path.suffix.lower() == ".html":
        data = vl_convert.vegalite_to_html(text, bundle=True).encode()
    else:
        data = vl_convert.vegalite_to_svg(text).encode()
    write_file(path, data)
