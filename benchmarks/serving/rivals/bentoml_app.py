"""BentoML with ONNX Runtime and binary bodies: `bentoml serve bentoml_app:Service`.

The model and the shape are in the environment; LIMIT is the service's `max_concurrency`, 0 leaves it out.
"""

import os

import bentoml
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

LIMIT = int(os.environ.get("LIMIT", "0"))
DIMS = (-1, *(int(size) for size in os.environ["SHAPE"].split(",")))
state: dict = {}


def answer(body: bytes) -> bytes:
    return state["session"].run(None, {"input": np.frombuffer(body, np.float32).reshape(DIMS)})[0].tobytes()


async def infer(request: Request) -> Response:
    body = await request.body()
    return Response(await run_in_threadpool(answer, body), media_type="application/octet-stream")


raw = Starlette(routes=[Route("/infer", infer, methods=["POST"])])


@bentoml.asgi_app(raw, path="/raw")
@bentoml.service(workers=1, traffic={"timeout": 30, **({"max_concurrency": LIMIT} if LIMIT else {})})
class Service:
    def __init__(self) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        state["session"] = ort.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    def health(self) -> str:
        return "ok"
