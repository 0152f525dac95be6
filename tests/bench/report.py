"""What came out: a table to read, JSON to keep. Not for: measuring. Units: those of the rows."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.row import FLOOR, OURS, Result


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def lines(row: dict[str, Any]) -> list[str]:
    """A row, as JSON has it, in lines of Markdown: a heading, a table of its contestants, and what was asked."""
    out = [f"### {row['row']} ({row['unit']}{', less is better' if row['better'] == 'low' else ''})", ""]
    out += ["| contestant | median | min to max | synthfs / it |", "|---|---|---|---|"]
    for name, one in row["contestants"].items():
        beside = "" if name == OURS or one["ours_to_it"] is None else f"{one['ours_to_it']:.2f}"
        out.append(f"| {name} | {figure(one['median'])} | {figure(one['min'])} to {figure(one['max'])} | {beside} |")
    out.append("")
    for goal in row["goals"]:
        value = goal["value"]
        said = "nothing to compare with" if value is None else f"{value:.3g}: {'met' if goal['met'] else 'MISSED'}"
        floor = "" if goal["floor"] is None else f" ({FLOOR}: {goal['floor']:.3g})"
        out.append(f"- asked: {goal['goal']}; {said}{floor}")
    return [*out, *(f"- {note}" for note in row["notes"]), ""]


def summary(document: dict[str, Any]) -> list[str]:
    """What was asked and what came out, a line each, of a whole run."""
    out = [f"| work | synthfs | asked | found | | {FLOOR} |", "|---|---|---|---|---|---|"]
    for row in document["rows"]:
        ours = row["contestants"].get(OURS)
        shown = f"{figure(ours['median'])} {row['unit']}" if ours else ""
        for goal in row["goals"] or [{"goal": "reported", "value": None, "met": None, "floor": None}]:
            found, floor = ("" if goal[key] is None else figure(goal[key]) for key in ("value", "floor"))
            verdict = {True: "met", False: "missed", None: ""}[goal["met"]]
            out.append(f"| {row['row']} | {shown} | {goal['goal']} | {found} | {verdict} | {floor} |")
    return out


def document(results: list[Result], skipped: list[str], rounds: int) -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "kernel": platform.release(),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "load": list(os.getloadavg()),
            "processor_share": _share(),
        },
        "rounds": rounds,
        "rows": [result.as_json() for result in results],
        "skipped": skipped,
    }


def _share() -> int | None:
    """The weight of this process' control group against others, of which 1024 is the usual one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        path = Path(f"/sys/fs/cgroup/cpu{group}/cpu.shares")
        if "cpu" in controllers.split(",") and path.exists():
            return int(path.read_text())
    return None


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
