"""Draw the figures of the documentation anew: ``python docs/figures/draw.py``, or ``make figures``."""

import argparse
from pathlib import Path

import torch
from exactness import exactness
from filters import steerable_filters
from invariance import invariance
from same_features import equivariance
from scale_axis import lifting, scale_convolution

from equiscale._files import atomic_path

FIGURES = {
    "equivariance": equivariance,
    "steerable-filters": steerable_filters,
    "lifting": lifting,
    "scale-convolution": scale_convolution,
    "invariance": invariance,
    "exactness": exactness,
}


def main() -> None:
    """Write every figure, or those that are named, beside this file or into another folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"expected names of {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FIGURES:
        with atomic_path(arguments.output / f"{name}.svg") as temporary:
            temporary.write_text(FIGURES[name]() + "\n")


if __name__ == "__main__":
    main()
