"""Train the network that the recipe compresses: plain PyTorch, on the recipe's own data and splits.

python train.py                           # HAM10000/ beside this file, see the README
python train.py --data /data/ham10000     # elsewhere
python train.py --recipe chain.yaml --output resnet18.safetensors
"""

import argparse
import math
import shlex
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augment import turned
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pastille import Split, read_recipe
from pastille.data.load import load_splits
from pastille.progress import SILENT
from pastille.task.factory import model_factory

HERE = Path(__file__).resolve().parent
BATCH = 64
PEAK_LEARNING_RATE = 3e-3


def main() -> None:
    asked = arguments()
    overrides = [*located(asked.data), f"data.size={asked.size}"]
    recipe = read_recipe(HERE / asked.recipe, overrides)
    # The very splits of `pastille run`: what is tested there must not be learned here.
    splits = load_splits(recipe.data, recipe.task, base=HERE, seed=recipe.seed, progress=SILENT)
    print(f"{splits.train.n} images to learn from, {splits.validation.n} to choose the best epoch by")
    untrained = model_factory(recipe.task, HERE, seed=recipe.seed)()
    model = train(untrained, splits.train, splits.validation, epochs=asked.epochs, seed=recipe.seed)
    weights = asked.output or HERE / "best.safetensors"
    save_file(model.state_dict(), weights)
    print(f"\nwritten: {weights}\nnow run:")
    sets = " ".join(f"--set {shlex.quote(text)}" for text in overrides)
    print(f"  pastille run {HERE / asked.recipe} --set task.weights={weights.resolve()} {sets}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "HAM10000", help="folder of the data set")
    parser.add_argument("--recipe", default="recipe.yaml", help="whose model is trained, beside this file")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="pixels a side, a multiple of 16")
    parser.add_argument("--output", type=Path, help="where the weights go; best.safetensors beside this file")
    return parser.parse_args()


def located(folder: Path) -> list[str]:
    """Where a copy of the data set keeps its table and images, as overrides of the recipe.

    Args:
        folder: Holds ``HAM10000_metadata``, with or without ``.csv``, or ``metadata.csv``; and the images in
            ``HAM10000_images_part_1`` and ``_2``, or in ``images``.
    """
    tables = [folder / name for name in ("HAM10000_metadata.csv", "HAM10000_metadata", "metadata.csv")]
    folders = sorted(folder.glob("HAM10000_images_part_*/")) or [folder / "images"]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise SystemExit(f"{folder} has none of {', '.join(path.name for path in tables)}; see the README")
    images = ", ".join(str(path.resolve()) for path in folders)
    return [f"data.path={table.resolve()}", f"data.images=[{images}]"]


def train(model: nn.Module, learn: Split, check: Split, *, epochs: int, seed: int) -> nn.Module:
    """Train from random weights; the epoch with the highest validation AUROC stays."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    counts = np.bincount(learn.targets)
    weight = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    steps = epochs * math.ceil(learn.n / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    best, kept = 0.0, model.state_dict()
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for rows in torch.split(torch.randperm(learn.n, generator=generator), BATCH):
            images, targets = batch(learn, rows)
            loss = F.cross_entropy(model(turned(images, generator)), targets, weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        auroc, sensitivity, specificity = scores(model, check)
        left = (time.monotonic() - started) / epoch * (epochs - epoch)
        print(
            f"epoch {epoch:>2} of {epochs}: loss {np.mean(losses):.3f}, validation AUROC {auroc:.3f}, "
            f"sensitivity {sensitivity:.1%}, specificity {specificity:.1%}; {left:.0f} s left",
            flush=True,
        )
        if auroc > best:
            best, kept = auroc, {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(kept)
    return model


def batch(split: Split, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, H, W)``, decoded and normalized by the recipe's reader, and classes ``(N,)``."""
    images = np.stack([split.inputs[i] for i in rows.tolist()])
    return torch.from_numpy(images), torch.from_numpy(split.targets[rows.numpy()])


def scores(model: nn.Module, split: Split) -> tuple[float, float, float]:
    """AUROC, and sensitivity and specificity at a probability of one half."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch(split, rows)[0]) for rows in torch.split(torch.arange(split.n), 256)])
    odds = (logits[:, 1] - logits[:, 0]).numpy()
    malignant = split.targets == 1
    auroc = float(roc_auc_score(malignant, odds))
    return auroc, float((odds[malignant] > 0).mean()), float((odds[~malignant] <= 0).mean())


if __name__ == "__main__":
    main()
