"""Imports point downward, and the package stays light; both checks are shown to be able to fail."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import normfuse

PACKAGE = Path(normfuse.__file__).parent

BASE = {
    "arguments",
    "clock",
    "errors",
    "files",
    "inductor_compat",
    "measured",
    "torch_compat",
    "page",
    "report",
    "report_stream",
    "report_table",
    "options",
    "progress",
    "rms_norm",
    "rule_names",
    "warn",
}
#: What each part may import besides itself and the base.
MAY_IMPORT = {
    "ir": set(),
    "convert": {"nn"},
    "patterns": {"ir"},
    "analysis": {"ir"},
    "folding": {"ir"},
    "capture": {"ir", "folding"},
    "freezing": {"ir", "folding", "capture"},
    "kernels": set(),
    "lowering": {"ir", "kernels"},
    "passes": {"ir", "patterns", "analysis", "folding", "lowering"},
    "pt2": set(),
    "export": {"verify"},
    "nn": set(),
    "verify": {"ir", "folding", "lowering", "passes", "pt2"},
    "rewriting": {"ir", "folding", "capture", "checkpoint", "export", "passes", "pt2", "verify"},
    "in_place": {"ir", "folding", "capture", "passes", "verify", "rewriting"},
    "backends": {"ir", "folding", "freezing", "capture", "passes", "verify", "rewriting"},
    "sources": {"checkpoint", "pt2"},
    "benchmark": {
        "ir",
        "analysis",
        "export",
        "freezing",
        "capture",
        "passes",
        "pt2",
        "verify",
        "rewriting",
        "backends",
        "sources",
    },
    "checkpoint": {"ir", "folding", "capture", "passes"},
    "cli": {
        "export",
        "folding",
        "capture",
        "pt2",
        "verify",
        "rewriting",
        "sources",
        "backends",
        "benchmark",
        "checkpoint",
    },
}
FRAMEWORKS = ("torch._dynamo", "torch._inductor", "triton")


def imports(source: str) -> set[str]:
    """Full names of all modules that a source file imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def violations(part: str, source: str) -> set[str]:
    names = imports(source)
    own = {n.split(".")[1] for n in names if n.startswith("normfuse.")}
    upward = own - BASE - {part} - MAY_IMPORT.get(part, set(MAY_IMPORT))
    heavy = {n for n in names if n.startswith(FRAMEWORKS)} if part not in ("backends", "kernels") else set()
    return upward | heavy


def files() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in BASE and part != "__init__":
            found.append((part, path))
    return found


@pytest.mark.parametrize(("part", "path"), files(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_imports_point_downward(part: str, path: Path) -> None:
    assert violations(part, path.read_text()) == set()


def test_the_check_can_fail() -> None:
    assert violations("ir", "from normfuse.passes.lift import lift") == {"passes"}
    assert violations("analysis", "def f():\n    import torch._dynamo") == {"torch._dynamo"}


def heavy_after(*statements: str) -> list[set[str]]:
    """What of the heavy modules is loaded after each of the statements, in one process."""
    code = "import sys; " + "; ".join(f"{s}; print(*sys.modules)" for s in statements)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) & {*FRAMEWORKS, "sympy", "rich"} for line in shown.stdout.splitlines()]


def test_importing_normfuse_and_naming_the_backend_is_light() -> None:
    """What the backend itself needs shows that this check can fail.

    The package ``normfuse.verify`` and the function of that name are told apart whatever is imported first.
    """
    package, oracle, entry, _, backend = heavy_after(
        "import normfuse; normfuse.NormfuseError",
        "import normfuse.verify.widen",
        "import normfuse.backends.entry",
        "import torch; assert normfuse.verify(torch.exp, torch.exp, (torch.ones(3),)).ok",
        "import normfuse.backends.compile",
    )
    assert package == oracle == entry == set()
    assert "torch._dynamo" in backend


def test_public_names() -> None:
    for name in normfuse.__all__:
        assert getattr(normfuse, name) is not None
    assert {"rewrite", "explain", "verify", "invalidate", "last_report"} <= set(normfuse.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = normfuse.nothing


def test_layers_and_conversion_are_there_without_another_import() -> None:
    """Whatever was imported before, ``convert`` and ``calibrate`` are functions to the caller."""
    heavy = heavy_after(
        "import normfuse; assert 'nn' in dir(normfuse)",
        "import normfuse.convert.calibrate, normfuse.convert.swap",
        "assert normfuse.nn.UnifiedNorm(8).num_features == 8",
        "m = __import__('torch').nn.Sequential(__import__('torch').nn.LayerNorm(8)); "
        "assert len(normfuse.convert(m, to='unified_norm').converted) == 1",
        "assert normfuse.calibrate.__name__ == 'calibrate' and callable(normfuse.calibrate)",
    )
    assert heavy[0] == set()
    assert all("torch._dynamo" not in loaded and "sympy" not in loaded for loaded in heavy[1:])


def test_the_backend_is_registered() -> None:
    import torch

    assert "normfuse" in torch._dynamo.list_backends()
