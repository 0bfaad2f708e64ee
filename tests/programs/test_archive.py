"""Program files from elsewhere: what is no program, and what would run code when PyTorch reads it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import zipfile
from random import Random

import pytest
import torch
from torch import nn

import normfuse
from normfuse.pt2 import load_program, save_program
from normfuse.pt2.archive import check_archive
from normfuse.pt2.expressions import is_guard, is_size
from tests.backends.networks import prenorm
from tests.programs.models import small_program


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "good.pt2"
    save_program(small_program(), path)
    return path


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace) -> None:
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def edited(good, target, **changes):
    """A copy of a program in which entries have other contents; None leaves one out."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].split("/")[0]
        changes = {f"{top}/{name}": data for name, data in changes.items()}
        for name in dict.fromkeys([*old.namelist(), *changes]):
            data = changes.get(name, old.read(name) if name in old.namelist() else None)
            if data is not None:
                new.writestr(name, data)
    return target


def with_json(good, target, name, change):
    with zipfile.ZipFile(good) as old:
        top = old.namelist()[0].split("/")[0]
        held = json.loads(old.read(f"{top}/{name}"))
    change(held)
    return edited(good, target, **{name: json.dumps(held).encode()})


MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


def first_weight(held):
    return next(iter(held["config"].values()))


def test_a_program_comes_back_as_it_was(good):
    program, loaded = small_program(), load_program(good)
    assert loaded.range_constraints.keys() == program.range_constraints.keys()
    assert all(torch.equal(loaded.state_dict[k], v) for k, v in program.state_dict.items())
    args, _ = program.example_inputs
    assert torch.equal(loaded.module()(*args), program.module()(*args))


def test_what_is_no_file(tmp_path):
    with pytest.raises(normfuse.InputError, match="does not exist"):
        load_program(tmp_path / "none.pt2")
    with pytest.raises(normfuse.InputError, match="is a folder"):
        load_program(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"PK\x05\x06" + bytes(18)])
def test_junk(content, tmp_path):
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(
        normfuse.InputError, match=r"is empty|is not a \.pt2 program|is a zip archive, but not"
    ):
        load_program(tmp_path / "x.pt2")


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_truncated_files(share, good, tmp_path):
    data = good.read_bytes()
    (tmp_path / "x.pt2").write_bytes(data[: int(share * len(data))])
    with pytest.raises(normfuse.InputError, match="truncated"):
        load_program(tmp_path / "x.pt2")


def flipped(good, target, place, bit):
    data = bytearray(good.read_bytes())
    data[place] ^= 1 << bit
    target.write_bytes(bytes(data))
    return target


ENTRIES = (MODEL, WEIGHTS, "data/weights/weight_0", "data/sample_inputs/model.pt", "archive_format")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_flipped_bit_in_a_weight_or_the_graph_is_one_sentence(good, entry, share, tmp_path):
    """PyTorch reads such a file, and a bit of a weight would go unnoticed."""
    with zipfile.ZipFile(good) as archive:
        (info,) = [i for i in archive.infolist() if i.filename.endswith(f"/{entry}")]
        with archive.open(info) as held:
            start = held._fileobj.tell()  # where its contents begin
    bad = flipped(good, tmp_path / "x.pt2", start + int(share * info.file_size), bit=3)
    with pytest.raises(normfuse.InputError, match=r"damaged: .* does not match its check sum") as found:
        load_program(bad)
    assert len(str(found.value).splitlines()) == 1


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(good, tmp_path):
    """Headers and padding hold bits that nobody reads."""
    (x,), _ = load_program(good).example_inputs
    expected = load_program(good).module()(x)
    random, size = Random(0), good.stat().st_size
    places = [random.randrange(size) for _ in range(30)] + [size - 1 - 7 * i for i in range(60)]
    refused = 0
    for place in places:
        bad = flipped(good, tmp_path / "x.pt2", place, random.randrange(8))
        try:
            loaded = load_program(bad)
        except normfuse.InputError:
            refused += 1
            continue
        assert torch.equal(loaded.module()(x), expected)
    assert refused > len(places) / 2


def test_a_checkpoint_is_named_as_one(tmp_path):
    torch.save(prenorm().state_dict(), tmp_path / "x.pt2")
    with pytest.raises(normfuse.InputError, match="is a checkpoint"):
        load_program(tmp_path / "x.pt2")


def test_another_schema_version(good, tmp_path):
    path = with_json(good, tmp_path / "x.pt2", MODEL, lambda held: held["schema_version"].update(major=99))
    with pytest.raises(normfuse.InputError, match=r"has schema version 99, and PyTorch .* reads"):
        load_program(path)


def test_a_graph_that_pytorch_refuses_is_one_sentence(good, tmp_path, capfd, caplog):
    def change(held):
        held["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.nothing.default"

    with pytest.raises(normfuse.InputError, match="is damaged, or is not a program") as error:
        load_program(with_json(good, tmp_path / "x.pt2", MODEL, change))
    assert "\n" not in str(error.value)
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def pickled(good, tmp_path, trace):
    """Files that would run code, each by another way that PyTorch has of reading them."""
    bomb = pickle.dumps(Payload(trace))
    target = tmp_path / "x.pt2"
    buffer = io.BytesIO()
    torch.save(Payload(trace), buffer)

    def weight(held):
        first_weight(held)["use_pickle"] = True

    def constant(held):
        held["config"]["c"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}

    def guard(held):
        held["guards_code"] = [f"open({str(trace)!r}, 'w') is not None"]

    def size(held):
        values = held["graph_module"]["graph"]["tensor_values"].values()
        sizes = [s for v in values for s in v["sizes"] if "as_expr" in s]
        sizes[0]["as_expr"]["expr_str"] = f"open({str(trace)!r}, 'w')"

    yield "samples", edited(good, target, **{"data/sample_inputs/model.pt": buffer.getvalue()})
    yield "weight", with_json(good, target, WEIGHTS, weight)
    constants = "data/constants/model_constants_config.json"
    path = with_json(good, target, constants, constant)
    yield "constant", edited(path, tmp_path / "y.pt2", **{"data/constants/opaque_obj_0": bomb})
    yield "guard", with_json(good, target, MODEL, guard)
    yield "size", with_json(good, target, MODEL, size)
    yield "legacy", edited(good, target, **{"data/weights/model.pt": buffer.getvalue()})
    yield "compiled", edited(good, target, **{"data/aotinductor/model/x.so": b"\x7fELF"})
    yield "second program", edited(good, target, **second_program(good, buffer.getvalue()))


def second_program(good, samples):
    """The entries of the same program again under another name, with other sample inputs."""
    with zipfile.ZipFile(good) as old:
        top = old.namelist()[0].split("/")[0]
        named = [MODEL, WEIGHTS, "data/constants/model_constants_config.json"]
        held = {name.replace("/model", "/second"): old.read(f"{top}/{name}") for name in named}
    return {**held, "data/sample_inputs/second.pt": samples}


def test_nothing_in_a_file_is_executed(good, tmp_path):
    trace = tmp_path / "was_here"
    refused = []
    for name, path in pickled(good, tmp_path, trace):
        with pytest.raises(normfuse.InputError, match=r"could run code|not arithmetic|holds"):
            load_program(path)
        assert not trace.exists(), name
        refused.append(name)
    assert len(refused) == 8


def test_folders_in_an_archive_are_no_programs(good, tmp_path):
    with_folders = edited(good, tmp_path / "x.pt2", **{"data/": b"", "data/weights/": b""})
    with contextlib.suppress(normfuse.InputError):  # PyTorch itself may not read it
        load_program(with_folders)
    check_archive(with_folders)


def test_a_program_of_another_name_is_named(good, tmp_path):
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "x.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("/model", "/other"), old.read(name))
    with pytest.raises(normfuse.InputError, match=r"holds no models/model.json"):
        load_program(tmp_path / "x.pt2")


def test_those_files_would_be_executed_otherwise(good, tmp_path):
    """The test above can fail: PyTorch alone runs what the files hold."""
    trace = tmp_path / "was_here"
    ran = set()
    for name, path in pickled(good, tmp_path, trace):
        trace.unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            torch.export.load(path).module()
        if trace.exists():
            ran.add(name)
    assert {"samples", "size", "legacy", "second program"} <= ran


@pytest.mark.parametrize(
    "text", ["s0", "2*s0 + 1", "Symbol('s72', positive=True, integer=True)", "Max(1, FloorDiv(s0, 4))"]
)
def test_arithmetic_is_let_through(text):
    assert is_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "s0.func",
        "eval('1')",
        "(lambda: 0)()",
        "[s0 for s0 in s1]",
        "Symbol('a\"b')",
        3,
        "s0 +",
    ],
)
def test_anything_else_is_not(text):
    assert not is_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "((L['x'].size()[1]*L['x'].size()[0]) % 4) == 0",
        "L['inputs']['a b'].size()[0] <= 8",
        "L['batch'].hidden[0].size()[0] // 2 <= 8",
        "torch.sym_min(L['y'].size()[0], L['x'].size()[0]) <= torch.sym_max(3, L['x'].stride()[0])",
        "math.trunc(1.5*torch.sym_float(L['x'].size()[0])) == 18",
        "math.ceil((L['x'].size()[0] / 2)) != round(math.sqrt(L['n']), 1)",
        "torch.sym_not(L['x'].size()[0] > 4) or torch._sym_sqrt(L['x'].size()[0]) == math.inf",
        "torch.sym_ite(L['x'].size()[0] >> 1 > 4, 1, torch.sym_int(2.5)) == L['x'].item()",
    ],
)
def test_guards_that_compare_numbers_are_let_through(text):
    assert is_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['\", print(1), \"'].size()[0] <= 8",
        "L['x'].__class__",
        "print(L['x'])",
        "L['x'].backward()",
        "L['x'].hidden.numpy()",
        "torch.load('x')",
        "torch.hub",
        "torch.hub.load('x', 'y')",
        "torch.sym_min.function",
        "math.sym_min(1, 2)",
        "torch.floor(1)",
        "sys.modules",
        "(lambda: L)().hidden",
    ],
)
def test_guards_that_do_anything_else_are_not(text):
    assert not is_guard(text)


class Shortest(nn.Module):
    def __init__(self, size) -> None:
        super().__init__()
        self.norm, self.size = nn.LayerNorm(4), size

    def forward(self, x, y):
        return self.norm(x)[: self.size(x.shape[0], y.shape[0])]


SIZES = {
    "sym_min": torch.sym_min,
    "sym_max": lambda a, b: torch.sym_max(a, b) - b,
    "sym_ite": lambda a, b: torch.sym_ite(torch.sym_not(a > b), a, b),
    "sqrt": lambda a, b: int(math.sqrt(a * b)),
    "trunc": lambda a, b: int(a * 0.7) - math.trunc(b / 3),
    "integers": lambda a, b: (a * 3 // 4 + b**2) % 5,
}


@pytest.mark.parametrize("name", SIZES)
def test_programs_that_compute_sizes_come_back(name, tmp_path):
    model, x, y = Shortest(SIZES[name]).eval(), torch.randn(6, 4), torch.randn(5, 4)
    auto = {0: torch.export.Dim.AUTO}
    torch.export.save(torch.export.export(model, (x, y), dynamic_shapes=(auto, auto)), tmp_path / "x.pt2")
    loaded = load_program(tmp_path / "x.pt2")
    assert torch.equal(loaded.module()(x, y), model(x, y))
