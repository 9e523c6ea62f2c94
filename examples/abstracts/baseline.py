"""No network at all: logistic regression on how often words occur (TF-IDF).

python baseline.py                         # abstracts/ beside this file, see the README
python baseline.py --data /data/abstracts  # elsewhere
"""

import argparse
from pathlib import Path

from data import classes, split_rows
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "abstracts", help="folder of the data set")
    accuracy, balanced = scores(parser.parse_args().data.resolve(), seed=0)
    print(f"TF-IDF, test split: accuracy {accuracy:.1%}, balanced accuracy {balanced:.1%}")


def scores(folder: Path, *, seed: int) -> tuple[float, float]:
    """Accuracy and balanced accuracy on the test split, from whole texts."""
    rows, parts = split_rows(folder, seed)
    train, test = ([rows[i] for i in parts[name]] for name in ("train", "test"))
    model = baseline().fit([row["medical_abstract"] for row in train], classes(train))
    answers = model.predict([row["medical_abstract"] for row in test])
    right = classes(test)
    return float(accuracy_score(right, answers)), float(balanced_accuracy_score(right, answers))


def baseline() -> Pipeline:
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2)
    return make_pipeline(words, LogisticRegression(C=3, class_weight="balanced", max_iter=500))


if __name__ == "__main__":
    main()
