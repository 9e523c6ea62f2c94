"""MLServer with ONNX Runtime and binary bodies: its REST protocol has none, its custom handlers do."""

import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.handlers import custom_handler
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

DIMS = (-1, *(int(size) for size in os.environ["SHAPE"].split(",")))


class Runtime(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    @custom_handler(rest_path="/infer")
    async def infer(self, request: Request) -> Response:
        body = await request.body()
        return Response(await run_in_threadpool(self.answer, body), media_type="application/octet-stream")

    def answer(self, body: bytes) -> bytes:
        return self.session.run(None, {"input": np.frombuffer(body, np.float32).reshape(DIMS)})[0].tobytes()
