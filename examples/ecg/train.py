"""Train the network that the recipe compresses, on the recipe's own splits.

python train.py                       # ptbxl/ beside this file, see the README
python train.py --data /data/ptb-xl   # elsewhere
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from pastille import Recipe, Splits, read_recipe, read_splits
from pastille.cli.console import progress
from pastille.data.cases import cases
from pastille.recipe import Train
from pastille.references import load_callable
from pastille.task.factory import model_factory
from pastille.train import Fitted, fit

HERE = Path(__file__).resolve().parent
SETTINGS = Train(
    epochs=16,
    learning_rate=2e-3,
    optimizer="adamw",
    weight_decay=0.05,
    class_weights="balanced",
    augment="data.py:jittered",
)


def main() -> None:
    asked = arguments()
    override = f"data.arguments.folder={asked.data.resolve()}"
    recipe = read_recipe(HERE / "recipe.yaml", [override])
    splits = read_splits(recipe, HERE)  # the very splits of `pastille run`
    print(f"{splits.train.n} windows to learn from, {splits.validation.n} to choose the best epoch by")
    fitted = train(recipe, splits, SETTINGS.model_copy(update={"epochs": asked.epochs}))
    save_file(fitted.model.state_dict(), asked.output)
    print(f"written: {asked.output}; validation {fitted.metric} {fitted.score:.3f}\nnow run:")
    print(
        f"  pastille run {HERE / 'recipe.yaml'} --set task.weights={asked.output.resolve()} --set {override}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "ptbxl", help="folder of the data set")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs)
    parser.add_argument("--output", type=Path, default=HERE / "best.safetensors", help="where weights go")
    return parser.parse_args()


def train(recipe: Recipe, splits: Splits, settings: Train) -> Fitted:
    """Train from random weights; the epoch that is best on validation stays."""
    return fit(
        model_factory(recipe.task, HERE, seed=recipe.seed)(),
        (splits.train, cases(splits.train, "train", recipe.task)),
        (splits.validation, cases(splits.validation, "validation", recipe.task)),
        settings,
        seed=recipe.seed,
        augment=load_callable(str(settings.augment), HERE, key="augment"),
        progress=progress(quiet=False),
        what="training",
    )


if __name__ == "__main__":
    main()
