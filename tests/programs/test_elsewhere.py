"""Files of other formats, and of quantized models: one sentence that says what they are."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import normfuse
from normfuse.pt2 import load_program


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.LayerNorm(2), torch.zeros(1, 2)), path)


def legacy(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path, _use_new_zipfile_serialization=False)


def truncated(path: Path) -> None:
    torch.export.save(torch.export.export(nn.LayerNorm(2), (torch.zeros(1, 2),)), path)
    path.write_bytes(path.read_bytes()[:-500])


STATE = {"model": nn.Linear(2, 2).state_dict(), "optimizer": {"step": torch.tensor(1)}}
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "script": (script, "is a TorchScript file"),
    "traced": (traced, "is a TorchScript file"),
    "module": (lambda p: torch.save(nn.Linear(2, 2), p), "is a whole module that torch.save pickled"),
    "legacy module": (legacy(nn.Linear(2, 2)), "is a whole module that torch.save pickled"),
    "state dict": (lambda p: torch.save(STATE, p), "is a checkpoint"),
    "legacy state dict": (legacy(STATE), "is a checkpoint"),
    "parameters": (lambda p: torch.save(dict(nn.Linear(2, 2).named_parameters()), p), "is a checkpoint"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a pickle that holds no model"),
    "damaged pickle": (lambda p: p.write_bytes(pickle.dumps([1] * 99)[:-9]), "is a pickle that is damaged"),
    "safetensors": (lambda p: safetensors.torch.save_file(STATE["model"], p), "is a safetensors checkpoint"),
    "onnx": (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.9.0:\x00"), "is an ONNX file"),
    "tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3\0\0"), "is a TensorFlow Lite file"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    "gguf": (lambda p: p.write_bytes(b"GGUF\x03\0\0\0"), "is a GGUF file"),
    "array": (lambda p: np.save(p.open("wb"), np.zeros(2)), "is a NumPy array"),
    "arrays": (lambda p: np.savez(p.open("wb"), a=np.zeros(2)), "is an archive of NumPy arrays"),
    "empty": (lambda p: p.touch(), "is empty"),
    "truncated": (truncated, "is truncated"),
    "text": (lambda p: p.write_text("hello"), "is not a .pt2 program, or is truncated"),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_named(kind: str, tmp_path: Path) -> None:
    write, message = FILES[kind]
    path = tmp_path / "model.pt2"
    write(path)
    with pytest.raises(normfuse.InputError) as error:
        load_program(path)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    path = tmp_path / "model.pt2"
    torch.save({"a": Runs()}, path)
    with zipfile.ZipFile(path) as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())
    with pytest.raises(normfuse.InputError, match="is a whole module"):
        load_program(path)
    assert not (tmp_path / "ran").exists()


def test_a_quantized_program_names_its_operators(tmp_path: Path) -> None:
    """It is read in a process that does not know the operators: this one has just imported them."""
    import torch.ao.quantization.fx._decomposed

    class Quantizes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            quantize = torch.ops.quantized_decomposed.quantize_per_tensor
            return quantize(x, 0.1, 0, -128, 127, torch.int8)

    path = tmp_path / "quantized.pt2"
    torch.export.save(torch.export.export(Quantizes(), (torch.zeros(2),)), path)
    read = (
        "import sys, normfuse\n"
        "try: normfuse.rewrite(sys.argv[1])\n"
        "except normfuse.InputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path} is quantized: it uses operators of quantized_decomposed")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_module_is_named() -> None:
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch quantizes nothing")
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    for call in (normfuse.rewrite, lambda m, args: normfuse.explain(m, *args)):
        with pytest.raises(normfuse.InputError, match="the model is quantized: 0 is a quantized Linear"):
            call(quantized, (torch.randn(2, 4),))
