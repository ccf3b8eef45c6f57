"""FLOP of all layers, losses and operators in torch's test databases, for all inputs: how many have a figure.

    pip install expecttest
    PYTHONPATH=tests/helpers python benchmarks/flop_sweep.py [INPUTS]

INPUTS is the most inputs of each, by default 20. Exit code 1 if one has no figure, or less than torch counts.
"""

from __future__ import annotations

import sys

from flop_sweep_cases import layer_cases, operator_cases, report, sweep


def main() -> int:
    """Print the counts, and the names of layers and operators without a figure."""
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    failed = False
    for kind, cases in (("layers and losses", layer_cases(inputs)), ("operators", operator_cases(inputs))):
        outcome = sweep(cases)
        print(", ".join(f"{name}: {value}" for name, value in report(kind, outcome).items()))
        for problem, names in (("without a figure", outcome.uncounted), ("below torch", outcome.below_torch)):
            if names:
                failed = True
                print(f"  {problem}: {', '.join(sorted(names))}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
