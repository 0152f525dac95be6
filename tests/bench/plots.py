"""Draws what scripts/bench has written: one picture of small charts, a row of the table each, as SVG with real text.

Not for: measuring. Needs matplotlib (the extra `bench`).
"""

from pathlib import Path
from typing import Any

OURS_COLOUR, OTHERS_COLOUR = "#1f6f8b", "#b8c4c9"


def draw(document: dict[str, Any], beginnings: tuple[str, ...], path: Path, columns: int = 2) -> None:
    """Every row whose title begins with one of `beginnings`: medians as bars, from the least to the most as a line."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and two runs of the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "synthfs", "font.size": 8, "font.family": "sans-serif"})
    from matplotlib import pyplot

    rows = [row for row in document["rows"] if row["row"].startswith(beginnings)]
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(9, 1.9 * lines), squeeze=False)
    for place in axes.flat[len(rows) :]:
        place.set_axis_off()
    for row, place in zip(rows, axes.flat, strict=False):
        names = list(row["contestants"])[::-1]
        found = [row["contestants"][name] for name in names]
        medians = [one["median"] for one in found]
        spread = [[one["median"] - one["min"] for one in found], [one["max"] - one["median"] for one in found]]
        colours = [OURS_COLOUR if name.startswith("synthfs") else OTHERS_COLOUR for name in names]
        place.barh(names, medians, color=colours, xerr=spread, error_kw={"elinewidth": 0.7})
        place.set_title(f"{row['row']} ({row['unit']}{', less is better' if row['better'] == 'low' else ''})", fontsize=8)
        # The .raw itself is an order of magnitude away from all that computes.
        if max(medians) > 15 * sorted(medians)[len(medians) // 2] and min(medians) > 0:
            place.set_xscale("log")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
