"""Clients that know what is right: they ask all the time and hold every answer against the models' own.

The right answers are computed here, by the runtime on the bundle's files; an answer counts as right where it
is that of the variant which it names, to 1e-5, and says the label that follows from it.
"""

from __future__ import annotations

import io
import json
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from serving_bundles import LABELS, Trigger, cases

from pastille.bundle import onnx_file, read_manifest
from pastille.runtime import Session, load
from serving.load import Connection
from serving.servers import Request, oip_answer, oip_request

Word = Literal["right", "4xx", "429", "503", "500", "wrong", "lost"]
TOLERANCE = 1e-5
VARIANTS = ("int8", "fp32")
PACE_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request, and what each variant that may answer it answers."""

    wire: bytes
    right: Mapping[str, np.ndarray]  # variant -> (N, 3): logits, or probabilities where it asks /predict
    friendly: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of one request."""

    began: float  # `time.monotonic`
    ended: float
    word: Word
    variant: str = ""
    detail: str = ""


def session(bundle: Path, name: str) -> Session:
    """A variant in this process."""
    manifest = read_manifest(bundle / "manifest.json")
    with onnx_file(bundle, next(v for v in manifest.variants if v.name == name)) as file:
        return load(file, threads=1)


def tensors(bundle: Path, count: int = 48) -> tuple[Question, ...]:
    """Of one to three cases each, as binary tensors; the variants' answers to each can be told apart."""
    sessions = {name: session(bundle, name) for name in VARIANTS}
    found = []
    for seed in range(count):
        x = cases(1 + seed % 3, seed=1000 + seed)
        right = {name: ask({"input": x})["logits"] for name, ask in sessions.items()}
        apart = np.abs(right["int8"] - right["fp32"]).max()
        assert apart > 100 * TOLERANCE, f"the variants cannot be told apart: {apart}"
        found.append(Question(wire=oip_request(x, "tiny", output="logits").wire(), right=right))
    return tuple(found)


def triggered(bundle: Path, switch: Trigger, value: float = 1.0, count: int = 16) -> tuple[Question, ...]:
    """Questions at which int8 fails in a certain way: only fp32's answer is right."""
    fp32 = session(bundle, "fp32")
    given = [cases(1, seed=2000 + seed, **{switch: value}) for seed in range(count)]
    return tuple(
        Question(
            wire=oip_request(x, "tiny", output="logits").wire(), right={"fp32": fp32({"input": x})["logits"]}
        )
        for x in given
    )


def pictures(bundle: Path, count: int = 8) -> tuple[Question, ...]:
    """PNG files for /predict; prepared here by hand: grey / 255, mean and deviation taken off."""
    sessions = {name: session(bundle, name) for name in VARIANTS}
    found = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
        x = ((pixels[None, None] / np.float32(255) - 0.5) / 0.25).astype(np.float32)
        right = {name: _softmax(ask({"input": x})["logits"]) for name, ask in sessions.items()}
        found.append(Question(wire=predict_request(png(pixels)).wire(), right=right, friendly=True))
    return tuple(found)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def predict_request(body: bytes, media_type: str = "image/png", **headers: str) -> Request:
    return Request(path="/predict/picture", headers={"Content-Type": media_type, **headers}, body=body)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def judged(question: Question, status: int, headers: Mapping[str, str], body: bytes) -> tuple[Word, str, str]:
    """What an answer is worth, the variant that it names, and what is amiss."""
    if status != 200:
        explained = "error" in json.loads(body) and (status not in (429, 503) or "retry-after" in headers)
        word: Word = "503" if status == 503 else "429" if status == 429 else "4xx" if status < 500 else "500"
        return word, "", body[:200].decode() if explained else f"not explained: {body[:200]!r}"
    variant, found, labels = (_friendly if question.friendly else _tensor)(headers, body)
    right = question.right.get(variant)
    if right is None or found.shape != right.shape or not np.abs(found - right).max() <= TOLERANCE:
        return "wrong", variant, f"{found} where {right} is right"
    if labels != [LABELS[i] for i in right.argmax(axis=1)]:
        return "wrong", variant, f"decided {labels} with {right}"
    return "right", variant, ""


def _tensor(headers: Mapping[str, str], body: bytes) -> tuple[str, np.ndarray, list[str]]:
    told = json.loads(body[: int(headers["inference-header-content-length"])])["parameters"]
    found = oip_answer(body, headers).reshape(-1, len(LABELS))
    decided = told["decision"] if len(found) == 1 else json.loads(told["decision"])
    return told["variant"], found, [decided] if isinstance(decided, str) else decided


def _friendly(_headers: Mapping[str, str], body: bytes) -> tuple[str, np.ndarray, list[str]]:
    told = json.loads(body)
    found = np.array([[told["probabilities"][label] for label in LABELS]])
    return told["variant"], found, [told["decision"]]


class Clients:
    """So many clients, each on its own connection, until told to stop."""

    def __init__(self, port: int, questions: Sequence[Question], count: int, *, fresh: bool = False) -> None:
        self.questions = tuple(questions)  # changed while they ask
        self.seen: list[Seen] = []
        self.stopped = threading.Event()
        self._port, self._fresh = port, fresh
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Seen]:
        """Every request's outcome, in the order of their ends."""
        self.stopped.set()
        for thread in self._threads:
            thread.join()
        return sorted(self.seen, key=lambda seen: seen.ended)

    def _ask_on(self, number: int) -> None:
        rng = np.random.default_rng(number)
        connection: Connection | None = None
        while not self.stopped.is_set():
            questions = self.questions
            question = questions[rng.integers(len(questions))]
            connection = self._ask(question, connection)
            if connection is not None and self._fresh:
                connection.close()
                connection = None
            time.sleep(PACE_S * rng.uniform(0.5, 1.5))
        if connection is not None:
            connection.close()

    def _ask(self, question: Question, connection: Connection | None) -> Connection | None:
        """One request; the connection where it can be used again."""
        if connection is not None and select.select([connection], [], [], 0)[0]:
            connection.close()  # the server closed it between two requests, as it may
            connection = None
        began, doing = time.monotonic(), "connect"
        try:
            connection = connection or Connection(self._port)
            doing = "ask"
            status, headers, body = connection.ask(question.wire)
            word, variant, detail = judged(question, status, headers, body)
        except OSError as error:
            detail = f"{doing}: {type(error).__name__}"
            self.seen.append(Seen(began=began, ended=time.monotonic(), word="lost", detail=detail))
            if connection is not None:
                connection.close()
            return None
        self.seen.append(Seen(began=began, ended=time.monotonic(), word=word, variant=variant, detail=detail))
        if headers.get("connection", "").lower() == "close":
            connection.close()
            return None
        return connection
