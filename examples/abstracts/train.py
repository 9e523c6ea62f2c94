"""Fine-tune all-MiniLM-L6-v2 on the recipe's own splits.

python train.py                         # abstracts/ beside this file, see the README
python train.py --data /data/abstracts  # elsewhere
"""

import argparse
from pathlib import Path

import torch
from model import pretrained
from safetensors.torch import save_file

from pastille import Recipe, Splits, read_recipe, read_splits
from pastille.cli.console import progress
from pastille.data.cases import cases
from pastille.recipe import Train
from pastille.train import Fitted, fit

HERE = Path(__file__).resolve().parent
SETTINGS = Train(
    epochs=3,
    learning_rate=1e-4,
    batch_size=32,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="linear",
    warmup=0.1,
    clip_norm=1.0,
    label_smoothing=0.1,
    precision="auto",
)


def main() -> None:
    asked = arguments()
    overrides = [f"data.arguments.folder={asked.data.resolve()}", f"data.arguments.tokens={asked.tokens}"]
    recipe = read_recipe(HERE / "recipe.yaml", overrides)
    splits = read_splits(recipe, HERE)  # the very splits of `pastille run`
    print(f"{splits.train.n} texts to learn from, {splits.validation.n} to choose the best epoch by")
    fitted = train(recipe, splits, SETTINGS.model_copy(update={"epochs": asked.epochs}))
    save_file(fitted.model.state_dict(), asked.output)
    print(f"written: {asked.output}; validation {fitted.metric} {fitted.score:.3f}\nnow run:")
    sets = " ".join(f"--set {text}" for text in (f"task.weights={asked.output.resolve()}", *overrides))
    print(f"  pastille run {HERE / 'recipe.yaml'} {sets}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "abstracts", help="folder of the data set")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs)
    parser.add_argument("--tokens", type=int, default=128, help="of each text; what is longer is cut off")
    parser.add_argument("--output", type=Path, default=HERE / "best.safetensors", help="where weights go")
    return parser.parse_args()


def train(recipe: Recipe, splits: Splits, settings: Train) -> Fitted:
    """Train from MiniLM's weights; the epoch that is best on validation stays."""
    torch.manual_seed(recipe.seed)  # of the linear layer
    return fit(
        pretrained(),
        (splits.train, cases(splits.train, "train", recipe.task)),
        (splits.validation, cases(splits.validation, "validation", recipe.task)),
        settings,
        seed=recipe.seed,
        progress=progress(quiet=False),
        what="training",
    )


if __name__ == "__main__":
    main()
