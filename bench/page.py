"""The page of the stored latency figures: where normfuse wins, ties and loses."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined

from bench.subjects import SUBJECTS
from normfuse.files import write_text

__all__ = ["render", "write_page"]

_TEMPLATE = Path(__file__).with_name("page.md.jinja")
_OURS = "normfuse"
#: The other columns, by the names of contenders.
_OTHERS = {
    "frozen": "inductor, frozen", "onnx": "onnxruntime", "none_frozen": "norms deleted, frozen",
    "none": "norms deleted", "eager": "eager",
}  # fmt: skip


def write_page(results: Path, target: Path) -> Path:
    """Render every ``*.json`` in ``results`` to the page ``target``."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return write_text(target, render(runs))


def render(runs: list[dict[str, Any]]) -> str:
    """The page of these figures, as Markdown."""
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    rows = [_row(run, batch) for run in runs for batch in run["batches"]]
    groups = {v: [row for row in rows if row["verdict"] == v] for v in ("faster", "tie", "slower")}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    commands = [run["command"] for run in runs]
    machines = list({json.dumps(run["machine"], sort_keys=True): run["machine"] for run in runs}.values())
    missing = [name for name in SUBJECTS if name not in {row["name"].partition(",")[0] for row in rows}]
    return template.render(groups=groups, rows=rows, commands=commands, machines=machines, missing=missing)


def _row(run: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    ratios = batch["time_over_inductor"]
    return {
        "name": _name(run["settings"]),
        "batch": batch["batch_size"] if batch["batch_size"] is not None else "",
        "verdict": batch["verdicts"][_OURS],
        "ours": _interval(ratios[_OURS]),
        **{column: _interval(ratios[name]) if name in ratios else "" for column, name in _OTHERS.items()},
        **_costs(batch.get("costs", {})),
        "noise": f"{100 * batch['noise_floor']:.1f} %",
        "ms": f"{1e3 * batch['seconds']['inductor']['median']:.2f}",
        "slow": ratios[_OURS]["median"] > 1 / 0.98 and batch["verdicts"][_OURS] == "slower",
    }


def _name(settings: dict[str, Any]) -> str:
    """The model, and how it is called where that is not the usual way."""
    parts = [settings["source"].rpartition(":")[2], settings.get("dtype")]
    parts.append(f"{settings['threads']} threads" if (settings.get("threads") or 1) > 1 else None)
    return ", ".join(part for part in (*parts, "training" if settings.get("training") else None) if part)


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} .. {ratio['high']:.3f})"


def _costs(costs: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    """Seconds of the first call, and MiB of memory, of Inductor and of normfuse, where they are known."""
    held = [costs.get(name) or [] for name in ("inductor", _OURS)]
    if not all(held):
        return {"first": "", "memory": ""}
    first = [median(run["first_call"] for run in runs) for runs in held]
    peaks = [median(run["peak_bytes"] or 0 for run in runs) / 2**20 for runs in held]
    return {"first": f"{first[0]:.0f}, {first[1]:.0f}", "memory": f"{peaks[0]:.0f}, {peaks[1]:.0f}"}
