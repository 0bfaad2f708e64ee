"""What a file is that is no program of ``torch.export``, told from its bytes; nothing in it is run."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["foreign_format", "foreign_operators"]

_EXPORT = "export the Python model with torch.export and save it with torch.export.save"
_SCRIPT = f"a TorchScript file, which torch.jit wrote; {_EXPORT}"
_MODULE = f"a whole module that torch.save pickled; load it yourself, and {_EXPORT}"
_CHECKPOINT = (
    "a checkpoint, which holds tensors and no model; name the model's Python code as module.path:factory, or "
    "apply `normfuse fold` to the checkpoint of a model that was rewritten"
)
_TRUNCATED = "truncated; copy or save the program again"
_ONNX = f"an ONNX file; {_EXPORT}, and convert the result to ONNX after the rewrite"
_HEADS = (
    (b"\x89HDF", f"an HDF5 file, as Keras writes them; {_EXPORT}"),
    (b"GGUF", f"a GGUF file; {_EXPORT}"),
    (b"\x93NUMPY", "a NumPy array; name a program of torch.export.save"),
)
#: Globals of a pickle that make tensors and containers, and no module.
_TENSORS = re.compile(
    r"torch(\._utils|\.storage|\._tensor|\.serialization|\.nn\.parameter)?( |$)|collections "
)

#: How files of torch.save began before they were archives, and how many pickles they hold.
_OLD_MAGIC, _OLD_PICKLES = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 4

_QUANTIZED = ("quantized_decomposed", "quantized", "torchao", "_quantized")


def foreign_format(path: Path) -> str:
    """A phrase for what the file is, and what to do; empty where that cannot be told."""
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if not head:
        return "empty; save the program again"
    if head.startswith(b"PK"):
        return _archived(path)
    if re.match(rb".{8}\{", head, re.DOTALL) and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _CHECKPOINT.replace("a checkpoint", "a safetensors checkpoint", 1)
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return _pickled(path.read_bytes())
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a]", head):
        return _ONNX
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite file; {_EXPORT}"
    return next((text for start, text in _HEADS if head.startswith(start)), "")


def _archived(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if min((i.header_offset for i in archive.infolist()), default=0) > 0:
                return _TRUNCATED  # the archive that is found is one of those inside
            pickled = next((n for n in names if n.endswith("data.pkl")), None)
            if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
                return _SCRIPT
            if pickled is not None:
                return _pickled(archive.read(pickled))
    except zipfile.BadZipFile:
        return _TRUNCATED
    if any(n.endswith(".npy") for n in names):
        return "an archive of NumPy arrays; name a program of torch.export.save"
    return f"a Keras model; {_EXPORT}" if {"config.json", "metadata.json"} <= set(names) else ""


def _pickled(data: bytes) -> str:
    """By the names that a pickle would import: those of tensors, or of somebody's classes too."""
    strings: list[str] = []
    try:
        for operation, argument in _operations(data):
            if operation.name == "GLOBAL" and not _TENSORS.match(str(argument)):
                return _MODULE
            if operation.name == "STACK_GLOBAL" and not _TENSORS.match(" ".join(strings[-2:])):
                return _MODULE
            if isinstance(argument, str):
                strings.append(argument)
    except Exception:
        return "a pickle that is damaged; save the program again with torch.export.save"
    return (
        _CHECKPOINT
        if any("torch" in text for text in strings) or b"torch" in data
        else (f"a pickle that holds no model; {_EXPORT}")
    )


def _operations(data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """Of every pickle in turn: PyTorch's older format is several, and then the bytes of the tensors."""
    stream = io.BytesIO(data)
    for _ in range(_OLD_PICKLES if data[:20].find(_OLD_MAGIC) >= 0 else 1):
        for operation, argument, _position in pickletools.genops(stream):
            yield operation, argument


def foreign_operators(text: str) -> str:
    """Why PyTorch does not read a program whose operators it does not know; empty for other reasons."""
    found = re.search(r"torch\.ops\.(\w+)\.", text)
    if found is None or found[1] == "aten":
        return ""
    if found[1] in _QUANTIZED:
        return (
            f"is quantized: it uses operators of {found[1]}, which are not registered here; rewrite the "
            "model before it is quantized, or load the program in Python after the library that made it, and "
            "pass it to normfuse"
        )
    return (
        f"uses operators of {found[1]}, which are not registered here; load the program in Python after the "
        "library that defines them, and pass it to normfuse"
    )
