"""Plain FastAPI with ONNX Runtime and binary bodies: what most people write first.

    python fastapi_app.py MODEL PORT SHAPE LIMIT

LIMIT is uvicorn's ``limit_concurrency``; 0 leaves it out.
"""

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response

model, port, shape, limit = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
dims = (-1, *(int(size) for size in shape.split(",")))
app = FastAPI()


def answer(body: bytes) -> bytes:
    return session.run(None, {"input": np.frombuffer(body, np.float32).reshape(dims)})[0].tobytes()


@app.post("/infer")
async def infer(request: Request) -> Response:
    from starlette.concurrency import run_in_threadpool

    body = await request.body()
    return Response(await run_in_threadpool(answer, body), media_type="application/octet-stream")


@app.get("/ready")
def ready() -> Response:
    return Response("ok")


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", limit_concurrency=int(limit) or None)
