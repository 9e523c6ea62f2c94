"""No network at all: logistic regression on the same columns.

python baseline.py                        # diabetes/ beside this file, see the README
python baseline.py --data /data/diabetes  # elsewhere
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import pastille

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "diabetes", help="folder of the data set")
    folder = parser.parse_args().data.resolve()
    recipe = pastille.read_recipe(HERE / "recipe.yaml", [f"data.arguments.folder={folder}"])
    auroc, balanced = scores(pastille.read_splits(recipe, HERE))
    print(f"logistic regression, test split: AUROC {auroc:.3f}, balanced accuracy {balanced:.1%}")


def scores(splits: pastille.Splits) -> tuple[float, float]:
    """AUROC and balanced accuracy on the test split."""
    train, test = splits.train, splits.test
    model = LogisticRegression(C=0.1, max_iter=500).fit(np.asarray(train.inputs), train.targets)
    odds = model.decision_function(np.asarray(test.inputs))
    return float(roc_auc_score(test.targets, odds)), float(balanced_accuracy_score(test.targets, odds > 0))


if __name__ == "__main__":
    main()
