"""``POST …/infer`` and ``POST /predict``: from bytes to an answer.

A request is refused before its body is read where that is possible, before it is parsed where it is too
large, and before any model sees it where it is not finite: an int8 model answers NaN with a confident number.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pastille.serve.endpoint import Asked
from pastille.serve.errors import Refused
from pastille.serve.friendly import form, is_quick, predict_body, read_predict
from pastille.serve.http import CROWDED
from pastille.serve.http_answers import Headers, Outcome, as_json
from pastille.serve.oip import infer_answer
from pastille.serve.reading import beside
from pastille.serve.seams import Engine
from pastille.serve.settings import Settings
from pastille.serve.values import Answered, Call, Reply, Route
from pastille.values import TensorSpec
from pastille.wire import InferRequest, WireLimits, compress, decode_request, read_json_length

_JSON_INLINE: Final = 256 << 10  # JSON up to this is parsed on the event loop, more in a thread
_NUMBERS_INLINE: Final = 16 << 10  # of an answer in JSON, that are written there
_NUMBER_BYTES: Final = 16  # about what one takes in JSON
_PACK_INLINE: Final = 1 << 20  # answers up to this are compressed there
_MOST_KEY: Final = 256


async def infer(asked: Asked) -> Outcome:
    """``POST /v2/models/M[/versions/V]/infer``."""
    engine = _open_engine(asked)
    json_length = read_json_length(asked.header(b"inference-header-content-length"))
    body = await asked.view(aligned_at=json_length or 0)
    started = time.perf_counter()
    request = await _decoded(body, json_length, engine, asked.standing.settings)
    numbers = json_numbers(request, engine.manifest.output, asked.standing.settings)
    call = _call(
        asked,
        engine,
        inputs=request.inputs,
        warnings=(),
        request_id=request.id,
        route="infer",
        parameters=request.parameters,
    )
    reply = await _reply(asked, call)
    answered = (reply, request, engine.manifest)
    inline = numbers <= _NUMBERS_INLINE
    encoded = infer_answer(*answered) if inline else await beside(infer_answer, *answered)
    packed, encoding = await _packed(encoded.body, asked.header(b"accept-encoding"))
    _note(asked, call, reply, started)
    (_, media_type), *more = encoded.headers()
    if encoding is not None:
        more.append((b"content-encoding", encoding.encode()))
    return Outcome(body=packed, media_type=media_type, headers=(*more, *_identified(call)))


def json_numbers(request: InferRequest, output: TensorSpec, settings: Settings) -> int:
    """How many numbers its answer spells out.

    Raises:
        Refused: ``too_large``, before a model is asked: writing them would hold up everybody.
    """
    if all(each.binary for each in request.outputs):
        return 0
    numbers, most = request.rows * math.prod(output.shape), settings.limits.json_bytes // _NUMBER_BYTES
    if numbers > most:
        raise Refused(
            "too_large",
            f"an answer in JSON may have at most {most} numbers, not {numbers}; ask for binary_data_output",
        )
    return numbers


async def _packed(body: bytes, accepted: str | None) -> tuple[bytes, str | None]:
    return compress(body, accepted) if len(body) <= _PACK_INLINE else await beside(compress, body, accepted)


async def predict(asked: Asked) -> Outcome:
    """``POST /predict[/M]``: a file, a row or a text, as the bundle's preprocessing takes it."""
    engine = _open_engine(asked)
    body = await asked.body()
    started = time.perf_counter()
    settings, model = asked.standing.settings, engine.status.model
    folder = asked.standing.models.directories[model]
    arguments = (body, asked.header(b"content-type"), engine.manifest, folder, settings.limits)
    if is_quick(body, engine.manifest):
        read = read_predict(*arguments)
    else:
        read = await beside(read_predict, *arguments)
    call = _call(
        asked,
        engine,
        inputs=read.inputs,
        warnings=read.warnings,
        request_id="",
        route="predict",
        parameters={},
    )
    reply = await _reply(asked, call)
    _note(asked, call, reply, started)
    told = predict_body(reply, engine.manifest, (time.perf_counter() - started) * 1e3)
    return as_json({**told, "request_id": call.request_id}, headers=_identified(call))


async def describe(asked: Asked) -> Outcome:
    """``GET /predict[/M]``: what it takes."""
    model = asked.path.get("model") or asked.standing.models.default
    engine = asked.standing.models.engine(model)
    return as_json({**form(engine.manifest), "model": model})


def _open_engine(asked: Asked) -> Engine:
    """Who will be asked, if a place is free or will be soon."""
    standing = asked.standing
    if standing.audit is not None and (problem := standing.audit.problem()):
        raise Refused("not_ready", problem, retry_after_s=5)
    models = standing.models
    engine = models.engine(asked.path.get("model") or models.default, asked.path.get("version"))
    if engine.full:
        wait = engine.retry_after_s
        raise Refused("overload", CROWDED, retry_after_s=wait)
    return engine


async def _decoded(
    body: bytes | bytearray | memoryview, json_length: int | None, engine: Engine, settings: Settings
) -> InferRequest:
    def decode() -> InferRequest:
        return decode_request(
            memoryview(body),
            json_length=json_length,
            specs=engine.manifest.inputs,
            outputs=(engine.manifest.output,),
            limits=wire_limits(settings),
        )

    in_json = len(body) if json_length is None else json_length
    return decode() if in_json <= _JSON_INLINE else await beside(decode)


def wire_limits(settings: Settings) -> WireLimits:
    """The bounds that the codec knows of."""
    limits = settings.limits
    return WireLimits(
        json_bytes=limits.json_bytes,
        inflated_bytes=limits.inflated_bytes,
        tensors=limits.tensors,
        elements=limits.elements,
        rows=limits.rows,
    )


def _call(
    asked: Asked,
    engine: Engine,
    *,
    inputs: Mapping[str, np.ndarray],
    warnings: tuple[str, ...],
    request_id: str,
    route: Route,
    parameters: Mapping[str, Any],
) -> Call:
    settings = asked.standing.settings
    unusual = asked.standing.guard(engine).unusual(inputs)
    if unusual and settings.out_of_range == "refuse":
        raise Refused("out_of_range", unusual[0])
    return Call(
        inputs=inputs,
        request_id=request_id or _own_id(asked),
        route=route,
        deadline=time.monotonic() + _patience_s(settings, parameters),
        subject=_subject(asked, parameters),
        warnings=(*warnings, *unusual),
    )


def _patience_s(settings: Settings, parameters: Mapping[str, Any]) -> float:
    """How long an answer is worth waiting for: time for the fallback too, or what the client says (in µs)."""
    ours = settings.queue.wait_s + 2 * settings.queue.timeout_s
    theirs = parameters.get("timeout")
    if not isinstance(theirs, int) or isinstance(theirs, bool) or not 0 < theirs < ours * 1e6:
        return ours
    return theirs / 1e6


def _own_id(asked: Asked) -> str:
    given = asked.header(b"x-request-id") or ""
    return given if given.isprintable() and 0 < len(given) <= 128 else secrets.token_hex(8)


def _subject(asked: Asked, parameters: Mapping[str, Any]) -> str | None:
    found = parameters.get("subject", asked.header(b"x-subject"))
    if found is None:
        return None
    key = str(found)
    if not 0 < len(key) <= _MOST_KEY:
        raise Refused("malformed", f"the subject key must have from 1 to {_MOST_KEY} characters")
    return key


async def _reply(asked: Asked, call: Call) -> Reply:
    models = asked.standing.models
    try:
        model = asked.path.get("model") or models.default
        return await models.answer(model, asked.path.get("version"), call)
    except Refused as error:
        model = asked.path.get("model") or models.default
        asked.standing.statistics.failed(model, models.engine(model).status.version, 0.0)
        raise error from None


def _note(asked: Asked, call: Call, reply: Reply, started: float) -> None:
    event = Answered(call=call, reply=reply, at=time.time(), total_s=time.perf_counter() - started)
    asked.standing.answered(event)


def _identified(call: Call) -> Headers:
    """Under which id labels that arrive later are taken; what a header cannot hold is in the body alone."""
    if not call.request_id.isascii():
        return ()
    return ((b"x-request-id", call.request_id.encode()),)
