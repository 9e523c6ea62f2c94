"""LitServe with ONNX Runtime and binary bodies.

python litserve_app.py MODEL PORT SHAPE
"""

import sys
from typing import Annotated

import litserve as ls
import numpy as np
from fastapi import Body, Response

model, port, shape = sys.argv[1:]
dims = (-1, *(int(size) for size in shape.split(",")))


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        return np.frombuffer(request, np.float32).reshape(dims)

    async def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"input": x})[0]

    async def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = ls.LitServer(Api(enable_async=True), accelerator="cpu", workers_per_device=2, timeout=30)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")
