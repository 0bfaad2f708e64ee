"""The tests as other processors round: libraries are told to use older instructions than this one has.

    python -m tests.matrix.processors [--only NAME ...] [arguments of pytest]

Runs pytest once for each setting and prints its last line beside the setting's name at the end. What this
processor cannot do is not made up for: on one without AVX-512 ``native`` says nothing about AVX-512.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

#: Inductor keeps what it compiled without regard to these settings, so each setting has a folder of its own.
COMPILED = Path("build/processors")
#: What stands in the environment. ``oldest`` is farthest from a new processor in every library at once.
SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "oldest": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
    },
}


def run(name: str, arguments: list[str]) -> tuple[bool, str]:
    """Whether pytest passed under a setting, and its last line."""
    setting = SETTINGS[name]
    print(f"\n== {name} {' '.join(f'{key}={value}' for key, value in setting.items())}", flush=True)
    compiled = (COMPILED / name.replace(" ", "_")).resolve()
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(compiled), **setting,
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", *arguments]
    last = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip(" =\n") or last
    return process.returncode == 0, last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", choices=SETTINGS, help="a setting; default: all")
    options, arguments = parser.parse_known_args()
    outcomes = {name: run(name, arguments) for name in options.only or SETTINGS}
    print()
    for name, (passed, line) in outcomes.items():
        print(f"{'ok    ' if passed else 'FAILED'}  {name:14}  {line}")
    return 0 if all(passed for passed, _ in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
