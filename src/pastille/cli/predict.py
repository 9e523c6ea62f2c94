"""``pastille predict``: ask a server about one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pastille.cli.console import out, reports_errors, show_json
from pastille.cli.options import AsJson, examples

if TYPE_CHECKING:
    from pastille.client import Prediction

EPILOG = examples(
    "pastille predict http://127.0.0.1:8080 scan.png",
    "pastille predict http://127.0.0.1:8080 row.json --json",
    "PASTILLE_TOKEN=… pastille predict https://ward-7:8443 ecg.csv --model ecg",
)
_MOST_SHOWN = 10  # labels, the most probable first


@reports_errors
def predict(
    url: Annotated[str, typer.Argument(help="Where the server listens.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            help="An image, a signal, a JSON row or a text, as the bundle takes.", show_default=False
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Which, where the server has several.")] = None,
    media_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="What the file is, where its name does not tell.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="PASTILLE_TOKEN", help="Where the server wants one.", show_envvar=True),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the server.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask a server about one file: label, probabilities, which variant answered, and any warning."""
    from pastille.client import Client

    with Client(url, token=token, model=model, timeout_s=timeout) as client:
        answer = client.predict(file, media_type=media_type)
    if as_json:
        show_json(dict(answer.said))
    else:
        show_prediction(answer)


def show_prediction(answer: Prediction) -> None:
    """What was decided, how probable the labels are, who said so, and what to be wary of."""
    for line in prediction_lines(answer):
        out.print(line, markup=False)


def prediction_lines(answer: Prediction) -> list[str]:
    """The lines of an answer, the decision first.

    Example:
        >>> from pastille.client import Prediction
        >>> found = Prediction(
        ...     model="mri", version="2", variant="int8", decisions=("glioma",), confidences=(0.91,),
        ...     probabilities={"healthy": 0.09, "glioma": 0.91},
        ... )
        >>> for line in prediction_lines(found):
        ...     print(line)
        glioma (91.0 %)
          glioma   91.0 %
          healthy   9.0 %
        by int8 of mri 2
    """
    cases = answer.said.get("cases") or ()
    said = _each(cases) if len(cases) > 1 else [_decided(answer)]
    said += _probabilities(answer.probabilities)
    said.append(f"by {answer.variant} of {answer.model} {answer.version}")
    if answer.fallback:
        said.append(f"fallback: {answer.fallback}")
    return [*said, *(f"warning: {warning}" for warning in answer.warnings)]


def _each(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of several rows, or windows of a recording."""
    return [f"{number}: {_case(case)}" for number, case in enumerate(cases, start=1)]


def _case(case: Mapping[str, Any]) -> str:
    decision = case.get("decision")
    return _undecided(case) if decision is None else _worded(decision, case.get("confidence"))


def _decided(answer: Prediction) -> str:
    return _undecided(answer.said) if answer.label is None else _worded(answer.label, answer.confidence)


def _worded(label: str | Sequence[str], confidence: float | None) -> str:
    text = label if isinstance(label, str) else ", ".join(label) or "none of the labels"
    return text if confidence is None else f"{text} ({confidence:.1%})".replace("%", " %")


def _undecided(said: Mapping[str, Any]) -> str:
    """A regression's value, a mask's pixels, or whatever a custom task gave."""
    for name in ("value", "pixels", "outputs"):
        if said.get(name) is not None:
            return f"{name}: {said[name]}"
    return "the answer holds no decision"


def _probabilities(found: Mapping[str, float]) -> list[str]:
    ordered = sorted(found.items(), key=lambda item: -item[1])
    width = max(map(len, found), default=0)
    shown = [f"  {label:<{width}} {100 * p:5.1f} %" for label, p in ordered[:_MOST_SHOWN]]
    rest = len(ordered) - _MOST_SHOWN
    return [*shown, f"  … and {rest} less probable ones"] if rest > 0 else shown
