"""The table of all model types that were rewritten, and the page that it makes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.corpus.table import counted, save

__all__ = ["POPULATION", "read_population", "render", "write_population"]

POPULATION = (
    "architecture", "recipe", "route", "status", "found", "after", "converted", "folded", "centrings", "stay",
    "not_folded", "float32", "bfloat16", "float64", "routes", "cause",
)  # fmt: skip
Row = dict[str, Any]
_DTYPES = ("float32", "bfloat16", "float64")
_NOTHING: Mapping[str, Mapping[str, str]] = {}
_STILL, _WAITS = "does not run", "no row yet"
#: From the worst to the best.
_STATES = ("far", "crash", "no end", "not judged", "no yardstick", "not captured", "ok")
#: Why a LayerNorm stays, by code, in the order in which the page tells it.
_WHY = {
    "post_norm": "another norm writes what it reads, and its weight brings back a mean that depends on data",
    "stream_is_output": "the values are returned before they are normalized, and the caller would see others",
    "raw_reader": "something else reads the values too, mean included",
    "nonlinear_writer": "an activation or another function that is not linear writes what it reads",
    "channel_mix": "channels are joined, split or reordered between the norms of the stream",
    "grouped_weight": "a depthwise or grouped convolution writes what it reads; no group sees all channels",
    "stream_enters_graph": "the values are an input of the graph",
    "channel_gate": "each channel is multiplied by a factor of its own that is computed from data",
    "table_copy": "a compiled graph would hold the table twice; a program rewritten offline replaces it",
    "weight_tied": "the table that writes the values is read elsewhere as well, unchanged",
    "mutated": "the graph writes in place to what it reads",
    "impure_operator": "what makes the weight may make another one at each call",
    "empty_input": "it reads no numbers",
}


def write_population(folder: Path, to: Path, known: Mapping[str, Mapping[str, str]] = _NOTHING) -> list[Row]:
    """One line for each architecture: of the folder, or else of this table before, or else of the last sweep.

    Returns the lines.
    """
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    before = read_population(to) if to.exists() else []
    lines = {line["architecture"]: line for line in before if line["status"] not in (_STILL, _WAITS)}
    lines |= {row["architecture"]: _line(row) for row in rows}
    for name, row in known.items():
        lines.setdefault(name, _without_row(name, row))
    ordered = [lines[name] for name in sorted(lines)]
    save(ordered, POPULATION, to)
    return ordered


def _without_row(name: str, known: Mapping[str, str]) -> Row:
    status = _WAITS if known["recipe"] else _STILL
    return {"architecture": name, "status": status, "cause": "" if known["recipe"] else known["cause"]}


def read_population(table: Path) -> list[Row]:
    """The lines of a table."""
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _line(row: Mapping[str, Any]) -> Row:
    head = {"architecture": row["architecture"], "recipe": row.get("recipe", "")}
    if "rewrite" not in row:
        return head | {"status": _STILL, "cause": row.get("reason", "")}
    made = row["rewrite"]
    state, cause = _state(made)
    counts = {name: counted(made.get(name, {})) for name in ("found", "after")}
    counts["stay"] = counted(Counter(code for _, code, _ in made.get("stay", ())))
    counts["not_folded"] = counted(Counter(code for *_, code, _ in made.get("not_folded", ())))
    plain = {name: str(made.get(name, "")) for name in ("route", "converted", "folded", "centrings")}
    figures = {name: _figure(made.get(name, {})) for name in _DTYPES}
    routes = "; ".join(f"{made[n]['routes']} in {n}" for n in _DTYPES if "routes" in made.get(n, ()))
    return head | {"status": state, "cause": cause, "routes": routes} | counts | plain | figures


def _state(made: Mapping[str, Any]) -> tuple[str, str]:
    """The worst of what the dtypes say, and its cause."""
    said = [(str(made[n]["status"]), f"{n}: {made[n].get('cause', '')}") for n in _DTYPES if n in made]
    said += [(str(made["status"]), str(made.get("cause", "")))] if "status" in made else []
    state, cause = min(said, key=lambda one: _STATES.index(one[0]))
    return state, "" if state == "ok" else cause


def _figure(found: Mapping[str, Any]) -> str:
    """The ratio, or the distance in float64; with what is allowed where that is more than the budget."""
    distance = f"{found['distance']:.1e}" if "distance" in found else ""
    if "ratio" not in found:
        return distance or str(found.get("status", ""))
    ratio = f"{found['ratio']:.2f}" + (f" of {found['allowed']:.2f}" if found["ratio"] > 1.5 else "")
    return f"{distance}, {ratio}" if distance else ratio


def render(lines: Sequence[Mapping[str, str]]) -> str:
    """The page of the documentation."""
    ran = [line for line in lines if line["status"] not in (_STILL, _WAITS)]
    parts = [_HEAD, _sums(lines, ran), _HOW, _stays(ran), _left(ran), _TABLE, _table(ran)]
    return "\n\n".join(part for part in parts if part) + "\n"


_HEAD = """# The population

Printed by `python -m bench.corpus population`. What becomes of the norms of every model type of
`transformers` that a tiny random configuration can build ([The corpus](corpus.md) says how), rewritten
offline and compared with the model itself:

    python -m bench.corpus run --route rewrite --seconds 120 --rows build/population
    python -m bench.corpus population    # bench/results/population.csv and this page

The first command makes the rows that are missing; stop and start as you like."""

_HOW = """`normfuse.rewrite` runs with `verify="off"`, so that nothing that is wrong could be undone.
`float32` and `bfloat16` are the error over the model's own against float64, the worst output's: 1.5 is
allowed, and more where chance or one rounding of inputs and weights explains it (*2.1 of 4.1*). `float64` is
the relative distance of both programs with all casts widened; 1e-11 is allowed, and where the model reads a
weight in float32, so that what is folded into it is rounded to that, the error over its own decides. Choices
between close numbers (`topk`, `argmax`, a comparison) are held as the model makes them, so a token of a
mixture of experts goes to the same expert in every run; *routes* counts the choices that rounding would have
changed. Models that cannot be exported are compiled, with eager mode behind normfuse."""

_TABLE = """## Every model type

*Folded* are norms whose weight, bias, factor or all is in other weights now. *Stays* says why LayerNorms do
not become RMSNorms."""


def _sums(lines: Sequence[Mapping[str, str]], ran: Sequence[Mapping[str, str]]) -> str:
    states = Counter(line["status"] for line in ran)
    found, after = (_total(line[name] for line in ran) for name in ("found", "after"))
    rows = [
        ("model types", len(lines)),
        ("that run with a recipe", sum(line["status"] != _STILL for line in lines)),
        ("and have a row here", len(ran)),
        *((f"of these: {_SAID.get(state, state)}", states[state]) for state in _STATES if states[state]),
        ("norms", sum(found.values())),
        ("LayerNorms", found["layer_norm"]),
        ("LayerNorms that became RMSNorms", sum(int(line["converted"] or 0) for line in ran)),
        ("LayerNorms that stay", after["layer_norm"]),
        ("norms folded", sum(int(line["folded"] or 0) for line in ran)),
        ("explicit centrings", sum(int(line["centrings"] or 0) for line in ran)),
        ("model types with LayerNorms", sum("layer_norm" in line["found"] for line in ran)),
        ("that keep none of them", sum(_loses_all(line) for line in ran)),
        ("of these without an explicit centring", sum(_loses_all(r) and r["centrings"] == "0" for r in ran)),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {count:,} |" for name, count in rows)])


_SAID = {
    "ok": "within the budget in every dtype",
    "not captured": "not captured in another dtype than float32",
    "no yardstick": "an output is itself too far from float64 to judge by",
}


def _loses_all(line: Mapping[str, str]) -> bool:
    return "layer_norm" in line["found"] and "layer_norm" not in line["after"]


def _total(texts: Iterable[str]) -> Counter[str]:
    """The sum of counts that are written as ``3 layer_norm; 1 rms_norm``."""
    total: Counter[str] = Counter()
    for text in texts:
        for part in filter(None, text.split("; ")):
            count, name = part.split(" ", 1)
            total[name] += int(count)
    return total


def _stays(ran: Sequence[Mapping[str, str]]) -> str:
    norms = _total(line["stay"] for line in ran)
    types = Counter(code for line in ran for code in _total([line["stay"]]))
    rows = [
        f"| `{code}` | {norms[code]:,} | {types[code]} | {_WHY.get(code, '')} |"
        for code, _ in norms.most_common()
    ]
    heads = "| code | norms | model types | why |\n| --- | --- | --- | --- |"
    return "\n".join(["## LayerNorms that stay\n", heads, *rows])


def _left(ran: Sequence[Mapping[str, str]]) -> str:
    """What is not within the budget, or could not be compared."""
    rows = [
        f"| `{r['architecture']}` | {r['status']} | {_cell(r['cause'])} |" for r in ran if r["status"] != "ok"
    ]
    heads = "| model type | state | cause |\n| --- | --- | --- |"
    return "\n".join(["## Not within the budget, or not compared\n", heads, *rows]) if rows else ""


def _table(ran: Sequence[Mapping[str, str]]) -> str:
    names = ("architecture", "found", "after", "converted", "folded", "centrings", "stay", *_DTYPES, "routes")
    heads = ("model type", "norms", "afterwards", *names[3:6], "stays", *names[7:])
    rows = [f"| {' | '.join(_cell(line[name]) for name in names)} |" for line in ran]
    return "\n".join([f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
