"""No network at all: logistic regression on the spectrum of each lead.

python baseline.py                       # ptbxl/ beside this file, see the README
python baseline.py --data /data/ptb-xl   # elsewhere
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import pastille

HERE = Path(__file__).resolve().parent
BINS = 25  # of 0.4 Hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "ptbxl", help="folder of the data set")
    folder = parser.parse_args().data.resolve()
    recipe = pastille.read_recipe(HERE / "recipe.yaml", [f"data.arguments.folder={folder}"])
    auroc, balanced = scores(pastille.read_splits(recipe, HERE))
    print(f"logistic regression, test split: AUROC {auroc:.3f}, balanced accuracy {balanced:.1%}")


def scores(splits: pastille.Splits) -> tuple[float, float]:
    """AUROC and balanced accuracy on the test split."""
    model = baseline().fit(features(splits.train), splits.train.targets)
    odds = model.decision_function(features(splits.test))
    return (
        float(roc_auc_score(splits.test.targets, odds)),
        float(balanced_accuracy_score(splits.test.targets, odds > 0)),
    )


def baseline() -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=0.003, max_iter=2000, class_weight="balanced")
    )


def features(split: pastille.Split) -> np.ndarray:
    """How strong each frequency is in each lead, ``(N, 12 × BINS)``, whenever the window begins."""
    signals = np.stack(list(split.inputs))  # (N, 12, T)
    strength = np.abs(np.fft.rfft(signals))[..., 1 : BINS + 1]
    return np.log1p(strength).reshape(len(signals), -1)


if __name__ == "__main__":
    main()
