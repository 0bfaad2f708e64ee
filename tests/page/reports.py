"""Reports made by hand: every outcome, and names that no page may take for markup."""

from __future__ import annotations

from normfuse.report import Refusal, Report, Rewrite, Site
from normfuse.report_stream import Operation, Part

__all__ = ["HOSTILE", "hostile_report", "mixed_report"]

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</style><b>bold</b>",
    "\"onmouseover=\"document.title='owned'",
    "' autofocus onfocus='document.title=1",
    "&lt;i&gt;",
    "{{ 7 * 7 }} ${x} %s",
    "javascript:alert(1)",
    "-->]]><!--",
    "\x00\x1b[31m",
    "\ud800half",
    "\u202etxt.exe",
    "no-break" * 40,
    "",
)  # fmt: skip


def certificate(name: str = "blocks.0.up.weight") -> dict:
    return {
        "rule": "recentre",
        "numerics": "reassociated",
        "equation": "LN(x) = RMS(C x)",
        "source": f"somebody, {name}",
        "conditions": [{"condition": f"written by {name}", "nodes": [name]}],
        "weights": [{"name": name}],
        "centred_explicitly": [name],
    }


def site(module: str, action: str = "kept", becomes: str = "layer_norm", **held) -> Site:
    made = Site(
        "layer_norm", {"kind": "layer_norm", "dims": [-1], "eps": 1e-5}, module, f"{module}.py:1", module
    )
    made.action, made.becomes = action, becomes
    for name, value in held.items():
        setattr(made, name, value)
    return made


def layer(number: int, path: str = "blocks.{}") -> list[Part]:
    module = path.format(number)
    readers = (Operation("linear", f"{module}.up", "net.py:7"),)
    norm = Part("norm", Operation("layer_norm", f"{module}.norm"), number, readers)
    return [norm, Part("writer", Operation("linear", f"{module}.down"), after=(number,))]


def mixed_report() -> Report:
    """Six norms on a stream, with every outcome, a reader of the stream, and one norm beside it."""
    reason = Refusal("raw_reader", "add reads it", "add", "drop it")
    sites = [
        *(site(f"blocks.{n}.norm", "converted", "rms_norm") for n in range(4)),
        site("blocks.4.norm", "reverted", refusal=Refusal("over_budget", "3.1 times, on inputs with a mean")),
        site(
            "blocks.5.norm",
            refusal=reason,
            refusals={"recentre": reason, "fold_scale": Refusal("tied", "no")},
        ),
        site("batch", "folded", "", rewrites=[Rewrite("fold_affine", certificate())]),
    ]
    for one in sites[:4]:
        one.rewrites.append(Rewrite("recentre", certificate()))
        one.errors["stored"] = 1.01
    stream = [part for number in range(6) for part in layer(number)]
    stream.insert(0, Part("writer", Operation("embedding", "embed")))
    stream.append(Part("reader", Operation("the output")))
    alone = [Part("writer", Operation("conv2d", "conv")), Part("norm", Operation("batch_norm", "batch"), 6)]
    return Report(
        sites, graphs=1, centrings=1, folded=8, copied_bytes=1_770_000, seconds=0.3, time=10.0,
        notes=["a note"], errors={"stored": 1.04, "mean 1000": 0.9}, breaks=["at net.py:3: print"],
        streams=[stream, alone],
    )  # fmt: skip


def hostile_report() -> Report:
    """Every text of a report is one that a page must not believe."""
    sites, stream = [], []
    for number, name in enumerate(HOSTILE):
        refusal = Refusal(name, name, name, name)
        held = {"refusal": refusal, "refusals": {name: Refusal("x", name)}, "errors": {name: 1.0}}
        made = site(name, kind=name, lowering=name, modulation=name, spelling=name, **held)
        made.spec = {name: name}
        made.rewrites = [Rewrite(name, certificate(name))]
        sites.append(made)
        operation = Operation(name, name, name)
        stream += [Part("writer", operation), Part("norm", operation, number, (operation,) * 6)]
        stream.append(Part("reader", operation))
    names = list(HOSTILE)
    return Report(
        sites, names[0], 1, notes=names, breaks=names, errors=dict.fromkeys(names, 1.0), streams=[stream]
    )
