"""KServe's Python server with ONNX Runtime and the binary tensor extension.

python kserve_app.py MODEL PORT
"""

import sys

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

path, port = sys.argv[1:]


class Net(Model):
    def __init__(self) -> None:
        super().__init__("model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:  # type: ignore[no-untyped-def]
        answer = self.session.run(None, {"input": payload.inputs[0].as_numpy()})[0]
        output = InferOutput(name="output", shape=list(answer.shape), datatype="FP32")
        output.set_data_from_numpy(answer, binary_data=True)
        return InferResponse(response_id=payload.id or "1", model_name="model", infer_outputs=[output])


if __name__ == "__main__":
    ModelServer(http_port=int(port), enable_grpc=False, workers=1).start([Net()])
