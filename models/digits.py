"""The handwritten digits that scikit-learn bundles, split once and for all: training, calibration and evaluation.

    python models/digits.py        writes digits_calib.npz and digits_eval.npz, keyed by the networks' input name

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (CC BY 4.0).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
CALIBRATION, EVALUATION = 256, 500


class Samples(NamedTuple):
    """Images [N,1,8,8] float32 in [0, 1] and their digits."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def split() -> tuple[Samples, Samples]:
    """Training and evaluation samples, disjoint; the first `CALIBRATION` training images calibrate."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    digits = labels[order].astype(np.int64)
    return Samples(images[EVALUATION:], digits[EVALUATION:]), Samples(images[:EVALUATION], digits[:EVALUATION])


def main() -> None:
    """Write the two archives."""
    train, evaluation = split()
    np.savez_compressed(HERE / "digits_calib.npz", input=train.images[:CALIBRATION])
    np.savez_compressed(HERE / "digits_eval.npz", input=evaluation.images, labels=evaluation.labels)


if __name__ == "__main__":
    main()
