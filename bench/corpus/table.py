"""The rows of all architectures as one table, in the order of their names, so that a change is a diff."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.corpus.exceptions import cause

__all__ = [
    "COLUMNS", "SWEPT", "brief", "counted", "counts", "known_rows", "save", "summary", "write",
    "write_swept",
]  # fmt: skip

COLUMNS = (
    "architecture", "recipe", "route", "present", "lifted", "refused", "missed", "no_norms", "wrong",
    "bitwise", "kinds", "reason",
)  # fmt: skip
SWEPT = (
    "architecture", "recipe", "status", "found", "after", "converted", "folded", "refused", "graphs",
    "distance", "tolerance", "notes", "cause",
)  # fmt: skip
Row = dict[str, Any]


def write(folder: Path, to: Path) -> list[Row]:
    """One line for each architecture and route; returns the lines."""
    lines: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        lines += _lines(json.loads(path.read_text(encoding="utf-8")))
    save(lines, COLUMNS, to)
    return lines


def write_swept(folder: Path, to: Path) -> list[Row]:
    """One line for each architecture of the route *compile*; returns the lines."""
    lines = [_swept(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    save(lines, SWEPT, to)
    return lines


def save(lines: Sequence[Row], columns: Sequence[str], to: Path) -> None:
    """Write a table beside its place, then move it there."""
    part = to.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    part.replace(to)


def _swept(row: Mapping[str, Any]) -> Row:
    head = {"architecture": row["architecture"], "recipe": row.get("recipe", "")}
    if "compile" not in row:
        return head | {"status": "model does not run", "cause": row.get("reason", "")}
    made = row["compile"]
    numbers = {name: counted(made.get(name, {})) for name in ("found", "after", "refused")}
    plain = {name: made.get(name, "") for name in SWEPT[2:] if name not in numbers}
    for name in ("distance", "tolerance"):
        plain[name] = f"{made[name]:.1e}" if name in made else ""
    return head | plain | numbers | {"notes": "; ".join(made.get("notes", ()))}


def counts(lines: Sequence[Row]) -> str:
    """How many model types have each status."""
    found = Counter(line["status"] for line in lines)
    return "\n".join(f"{count:4d} {status}" for status, count in found.most_common())


def known_rows(sweep: Path = Path("bench/results/sweep.csv")) -> dict[str, dict[str, str]]:
    """What the last sweep said of each model type: its recipe is tried first."""
    with sweep.open(encoding="utf-8", newline="") as file:
        return {line["architecture"]: line for line in csv.DictReader(file)}


def brief(row: Mapping[str, Any], routes: Sequence[str]) -> str:
    """What a route made of one model type, in a few words."""
    said = [str(row[r].get("status") or row[r].get("reason", "done")) for r in routes if r in row]
    return ", ".join(said) or str(row.get("reason", ""))


def _lines(row: Mapping[str, Any]) -> list[Row]:
    head = {"architecture": row["architecture"], "recipe": row.get("recipe", "")}
    routes = [r for r in ("export", "dynamo") if r in row]
    if not routes:
        return [head | {"route": "none", "reason": row.get("reason", "")}]
    return [head | _line(row["architecture"], route, row[route]) for route in routes]


def _line(architecture: str, route: str, score: Mapping[str, Any]) -> Row:
    if "reason" in score:
        return {"route": f"not by {route}", "reason": score["reason"]}
    no_norms = [m for m in score["missed"] if cause(architecture, m) is not None]
    missed = [m for m in score["missed"] if cause(architecture, m) is None]
    return {
        "route": route,
        "present": score["present"] - len(no_norms),
        "lifted": score["lifted"],
        "refused": counted(score["refused"]),
        "missed": counted(Counter(missed)),
        "no_norms": counted(Counter(no_norms)),
        "wrong": counted(Counter(score["wrong"])),
        "bitwise": {True: "yes", False: "no", None: ""}[score["bitwise"]],
        "kinds": counted(score["kinds"]),
        "reason": "",
    }


def counted(counts: Mapping[str, int]) -> str:
    """Counts as ``3 layer_norm; 1 rms_norm``."""
    return "; ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def summary(lines: Sequence[Row]) -> str:
    """The sums, as a few sentences."""
    text = [f"{len({line['architecture'] for line in lines})} model types"]
    for route in ("export", "dynamo"):
        chosen = [line for line in lines if line["route"] == route]
        present = sum(line["present"] for line in chosen)
        lifted = sum(line["lifted"] for line in chosen)
        share = 100 * lifted / present if present else 0.0
        wrong = sum(1 for line in chosen if line["wrong"])
        differing = sum(1 for line in chosen if line["bitwise"] == "no")
        text.append(
            f"{route}: {len(chosen)} captured, {present} norms, {lifted} lifted ({share:.2f}%), "
            f"{wrong} with a wrong description, {differing} not bitwise equal"
        )
    return "\n".join(text)
