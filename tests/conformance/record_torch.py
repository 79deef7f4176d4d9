"""Records what PyTorch computes in the cases of `peers_test`: python -m tests.conformance.record_torch PYTHON.

PYTHON is an interpreter with PyTorch and NumPy. `tests/conformance/torch_weights.json` is written anew.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conformance.peers_test import RECORD, digest, torch_cases, trained_by_torch


def main(python: str) -> None:
    """Runs PyTorch and writes the weights that it trains, every digit of them."""
    version = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, check=True)
    weights = trained_by_torch(python)
    cases = {
        ", ".join(key): {"given": digest(case), "weights": [weight.tolist() for weight in weights[key]]}
        for key, case in torch_cases().items()
    }
    RECORD.write_text(json.dumps({"torch": version.stdout.decode().strip(), "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
