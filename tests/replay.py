"""What the pipeline makes of many programs, written down, and what two such records differ in.

    python -m tests.replay record FILE [--cases N] [--skip RULE] [--like FILE]
    python -m tests.replay compare OLD NEW

The programs are the fuzz corpus, N random networks, every call of the operator table between weights and
norms, and the models of the zoo, compiled and exported. Written down of each are a normal form of the
rewritten graph, the outcome of every norm, and the folded weights: how they are computed, and what they are.

For another commit, check it out into a folder, copy this file and ``normfuse/ir/listing.py`` there, and run
it with PYTHONPATH set to that folder: nothing here needs more of normfuse than there has always been.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from normfuse.ir import Input, Program, Role
from normfuse.ir.listing import listing
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline
from normfuse.torch_compat import outside_tracing

aten = torch.ops.aten
Record = dict[str, Any]
#: The name of a program, what runs it, and the recipe of a random network.
Named = tuple[str, Callable[[Options], list[Record]], str]


def fuzz_cases(count: int, like: Path | None) -> Iterator[Named]:
    """The corpus, and so many random networks, or those of another record: commits draw different ones."""
    from tests.fuzz.campaign import CORPUS
    from tests.fuzz.recipe import Recipe

    stored = [(f"corpus {p.stem}", p.read_text(encoding="utf-8")) for p in sorted(CORPUS.glob("*.json"))]
    texts = _drawn(count) if like is None else _recipes(like)
    drawn = [(f"fuzz {hashlib.sha256(text.encode()).hexdigest()[:12]}", text) for text in texts]
    for name, text in (*stored, *drawn):
        yield name, lambda options, t=text: [_run(_fuzzed(Recipe.from_json(t)), options)], text


def _recipes(like: Path) -> list[str]:
    return [one["recipe"] for name, one in _read(like).items() if name.startswith("fuzz ")]


def _drawn(count: int) -> list[str]:
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzz.recipe import Recipe
    from tests.fuzz.strategy import recipes

    drawn: dict[str, None] = {}

    @seed(1)
    @settings(
        max_examples=2 * count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(recipes())
    def draw(recipe: Recipe) -> None:
        drawn[recipe.to_json()] = None

    draw()
    return list(drawn)[:count]


def _fuzzed(recipe: Any) -> Program:
    from tests.fuzz.network import build, retyped

    case = build(recipe, torch.float64)
    captured = case.capture(described=recipe.dynamic)
    return case.program(captured if recipe.dynamic else retyped(captured, case))


def table_cases() -> Iterator[Named]:
    """Each call on each of its operands, which a weight writes, read by norms of both kinds."""
    from tests.analysis.table_cases import CASES

    for call in CASES:
        for place in range(8):
            for stored in (False, True):
                name = f"table {call} of {place}{' stored' if stored else ''}"
                yield name, lambda options, c=call, p=place, s=stored: _tabled(c, p, s, options), ""


def _tabled(call: Any, place: int, stored: bool, options: Options) -> list[Record]:
    graph = Graph()
    inputs: list[Input] = []

    def given(value: torch.Tensor, role: Role = Role.PARAMETER) -> Node:
        node = graph.placeholder(f"x{len(inputs)}")
        node.meta["val"] = value
        inputs.append(Input(node, role, f"x{len(inputs)}", value))
        return node

    def made(target: Any, *args: Any, **kwargs: Any) -> Node:
        node = graph.call_function(target, args, kwargs)
        plain = map_aggregate((args, kwargs), lambda a: a.meta["val"] if isinstance(a, Node) else a)
        node.meta["val"] = target(*plain[0], **plain[1])
        return node

    held: list[torch.Tensor] = []
    map_aggregate((call.args, call.kwargs), lambda a: held.append(a) if isinstance(a, torch.Tensor) else a)
    unique = list({id(t): t for t in held}.values())
    if place >= len(unique) or not unique[place].is_floating_point() or not unique[place].dim():
        return []
    nodes = {id(t): given(t, Role.USER if t is unique[place] else Role.PARAMETER) for t in unique}
    width, dtype = unique[place].shape[-1], unique[place].dtype
    weights = [given(_numbers(dtype, width, width)), given(_numbers(dtype, width))]
    scales = {n: [given(_numbers(dtype, n)) for _ in range(4)] for n in range(1, 13)}
    nodes[id(unique[place])] = made(aten.linear.default, nodes[id(unique[place])], *weights)
    swapped = map_aggregate(
        (call.args, call.kwargs), lambda a: nodes[id(a)] if isinstance(a, torch.Tensor) else a
    )
    result = made(call.target, *swapped[0], **swapped[1])
    parts = result.meta["val"]
    if isinstance(parts, (list, tuple)):
        result = made(operator.getitem, result, call.part or 0)
    value = result.meta["val"]
    axis = 1 if stored else -1
    size = value.shape[axis] if value.dim() > 1 else 0
    if size not in scales or not value.is_floating_point() or value.dtype != dtype:
        return []
    weight, bias, mean, variance = scales[size]
    if stored:
        end = made(aten.batch_norm.default, result, weight, bias, mean, variance, False, 0.1, 1e-5, False)
    else:
        end = made(aten.layer_norm.default, result, [size], weight, bias, 1e-5)
    graph.output((end,))
    return [_run(Program(GraphModule({}, graph), inputs, copies_tables=True), options)]


def _numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) + 0.5


def model_cases() -> Iterator[Named]:
    """Every model of the zoo, compiled and exported."""
    from tests.models.zoo import ZOO

    for name in sorted(ZOO):
        yield f"compiled {name}", lambda options, n=name: _watched(n, options, _compile), ""
        yield f"exported {name}", lambda options, n=name: _watched(n, options, _export), ""


def _compile(model: Any, args: Any, kwargs: Any, options: Options) -> None:
    import normfuse

    given = {"normfuse.inner": "eager", "normfuse.skip": list(options.skip)}
    with torch.no_grad():
        torch.compile(model, backend=normfuse.normfuse_backend, options=given)(*args, **kwargs)


def _export(model: Any, args: Any, kwargs: Any, options: Options) -> None:
    import normfuse

    normfuse.rewrite(model, args, kwargs, verify="off", skip=list(options.skip))


def _watched(name: str, options: Options, start: Callable[..., None]) -> list[Record]:
    """What the pipeline returned while a model was compiled or exported."""
    from tests.models.zoo import build

    found: list[Record] = []

    def run(program: Program, *args: Any, **kwargs: Any) -> Any:
        report, folded = run_pipeline(program, *args, **kwargs)
        found.append(described(program, report, folded))
        return report, folded

    torch._dynamo.reset()
    with patch("normfuse.backends.compile.run_pipeline", run), patch("normfuse.rewriting.run_pipeline", run):
        start(*build(name), options)
    return found


def _run(program: Program, options: Options) -> Record:
    return described(program, *run_pipeline(program, options))


def described(program: Program, report: Any, folded: Sequence[Any]) -> Record:
    """What is written down of one program."""
    sources = [(one.node, one.sources) for one in folded]
    weights = program.weights
    return {
        "graph": listing(program.gm.graph, program.inputs, sources),
        "structure": _structure(program, folded),
        "sites": [_site(site) for site in report.sites],
        "centrings": report.centrings,
        "recipes": sorted(f"{one.recipe.label}: {_recipe(one.recipe)}" for one in folded),
        "values": sorted(
            f"{one.recipe.label}: {_figure(one.recipe.compute([weights[s].value for s in one.sources]))}"
            for one in folded
        ),
    }


def _site(site: Any) -> dict[str, Any]:
    done = [site.certificate["rule"]] if site.certificate else []
    return {
        "kind": site.kind,
        "becomes": site.becomes,
        "action": site.action,
        "rules": getattr(site, "rules", done),
        "refusal": site.refusal.code if site.refusal is not None else "",
    }


def _recipe(recipe: Any) -> str:
    """How a weight is computed, whatever the order of the steps."""
    places = [node for node in recipe.body.nodes if node.op == "placeholder"]
    return _made_of(recipe.body, {node: f"source {i}" for i, node in enumerate(places)})


def _figure(value: torch.Tensor) -> str:
    """A weight in a few numbers, to ten digits: another order of sums is the same weight."""
    with outside_tracing():
        flat = value.detach().double().flatten()
        weighted = flat * torch.linspace(1, 2, len(flat), dtype=torch.float64)
        return f"{list(value.shape)} {float(flat.abs().sum()):.9e} {float(weighted.sum()):.9e}"


def _structure(program: Program, folded: Sequence[Any]) -> str:
    """What the outputs are made of, whatever the order and the names of the nodes."""
    known = {i.node: i.name for i in program.inputs}
    known |= {one.node: f"{_recipe(one.recipe)} of {one.recipe.label}" for one in folded}
    return _made_of(program.gm.graph, known)


def _made_of(graph: Graph, known: dict[Node, str]) -> str:
    for node in graph.nodes:
        if node not in known:
            made = map_aggregate((node.args, node.kwargs), lambda a: known[a] if isinstance(a, Node) else a)
            known[node] = _hash(f"{node.op} {node.target} {made}")
    return known[graph.output_node()]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record(path: Path, cases: int, skip: Sequence[str], like: Path | None = None) -> None:
    """Run everything and write a line of JSON for each program."""
    options = Options.checked({"skip": list(skip)} if skip else {})
    named = [*fuzz_cases(cases, like), *table_cases(), *model_cases()]
    count: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as file:
        for name, run, recipe in named:
            for one in _records(run, options):
                count[name] += 1
                number = f" {count[name]}" if count[name] > 1 else ""
                file.write(json.dumps({"name": f"{name}{number}", "recipe": recipe, **one}) + "\n")


def _records(run: Callable[[Options], list[Record]], options: Options) -> list[dict[str, Any]]:
    try:
        return run(options)
    except Exception as error:
        return [{"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]


def compare(old: Path, new: Path) -> dict[str, list[str]]:
    """The names of the programs that differ, by what differs."""
    before, after = _read(old), _read(new)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys((*before, *after)):
        reason = _reason(before.get(name), after.get(name))
        if reason:
            groups.setdefault(reason, []).append(name)
    return dict(sorted(groups.items(), key=lambda one: -len(one[1])))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line.pop("name"): line for line in lines}


def _reason(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    if old is None or new is None:
        return f"only in the {'new' if old is None else 'old'} record"
    if "error" in old or "error" in new:
        return "" if old == new else f"error: {old.get('error')} => {new.get('error')}"
    if old["sites"] != new["sites"]:
        return f"norms: {_changes(old['sites'], new['sites'])}"
    if old["centrings"] != new["centrings"]:
        return f"centrings: {old['centrings']} => {new['centrings']}"
    if old["structure"] == new["structure"]:
        return "" if old["graph"] == new["graph"] else "the same operators in another order"
    if old["values"] != new["values"]:
        return "folded weights have other values"
    return "other recipes of equal weights" if old["recipes"] != new["recipes"] else "other operators"


def _changes(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    if len(old) != len(new):
        return f"{_kinds(old)} => {_kinds(new)}"
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    return "; ".join(sorted({f"{_outcome(a)} => {_outcome(b)}" for a, b in pairs}))


def _kinds(sites: list[dict[str, Any]]) -> str:
    return " ".join(sorted(site["kind"] for site in sites)) or "none"


def _outcome(site: dict[str, Any]) -> str:
    text = f"{site['kind']} {site['action']} {'+'.join(site['rules'])} {site['becomes']} {site['refusal']}"
    return " ".join(text.split())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--cases", type=int, default=200)
    recording.add_argument("--skip", action="append", default=[])
    recording.add_argument("--like", type=Path, help="a record whose random networks to take")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "record":
        record(given.file, given.cases, given.skip, given.like)
        return 0
    groups = compare(given.old, given.new)
    for reason, names in groups.items():
        sys.stdout.write(f"{len(names):6} {reason}\n       e.g. {', '.join(names[:3])}\n")
    return 1 if groups else 0


if __name__ == "__main__":
    sys.exit(main())
