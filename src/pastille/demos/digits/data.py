"""Handwritten digits: 1,797 real scans of 8×8 pixels that scikit-learn carries (UCI Optdigits)."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pastille
from pastille.values import ImageDecoding


def splits() -> pastille.Splits:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # (N, 1, 8, 8) in [0, 1]
    rows = np.arange(len(images))
    rest, test = train_test_split(rows, test_size=0.3, random_state=0, stratify=digits.target)
    train, validation = train_test_split(rest, test_size=0.2, random_state=0, stratify=digits.target[rest])

    def part(index: np.ndarray) -> pastille.Split:
        return pastille.Split(inputs=images[index], targets=digits.target[index])

    return pastille.Splits(
        train=part(train),
        validation=part(validation),
        test=part(test),
        # A server is sent image files, bright ink on black as here, and makes such arrays of them.
        preprocessing=pastille.Preprocessing(image=ImageDecoding(height=8, width=8, channels=1)),
    )
