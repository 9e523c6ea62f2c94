"""Run by the Python of .venv-kserve: ask a server through KServe's own client, and print what came back.

Use: python kserve_asks.py URL MODEL CASES.npy. Its imports are inside, for our own environment lacks them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np


def request_of(model: str, array: np.ndarray, *, binary: bool, binary_output: bool | None) -> Any:
    from kserve import InferInput, InferRequest  # type: ignore[import-not-found]
    from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]

    given = InferInput("input", list(array.shape), "FP32")
    given.set_data_from_numpy(array, binary_data=binary)
    form = {} if binary_output is None else {"binary_data": binary_output}
    asked = None if binary_output is None else [RequestedOutput("logits", parameters=form)]
    return InferRequest(model, [given], request_id="k-1", request_outputs=asked)


async def infer_all(client: Any, url: str, model: str, array: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for binary in (True, False):
        for binary_output in (None, True, False):
            headers: dict[str, str] = {}
            sent = request_of(model, array, binary=binary, binary_output=binary_output)
            answer = await client.infer(url, sent, model_name=model, response_headers=headers)
            logits = answer.outputs[0].as_numpy()
            found.append(
                {
                    "binary": [binary, binary_output],
                    "logits": np.asarray(logits).tolist(),
                    "id": answer.id,
                    "model": answer.model_name,
                    "parameters": dict(answer.parameters or {}),
                    "travelled": "inference-header-content-length" in headers,
                }
            )
    return found


async def failed(asking: Any) -> str:
    import httpx  # type: ignore[import-not-found,unused-ignore]

    try:
        await asking
    except httpx.HTTPStatusError as error:
        return str(error).splitlines()[0]
    return "no error"


async def main(url: str, model: str, array: np.ndarray) -> dict[str, Any]:
    from kserve import InferenceRESTClient, RESTConfig

    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    wrong = request_of(model, array[:, :3], binary=True, binary_output=None)
    right = request_of("other", array, binary=True, binary_output=None)
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model": await client.is_model_ready(url, model),
        "other": await client.is_model_ready(url, "other"),
        "answers": await infer_all(client, url, model, array),
        "raw": await client.infer(
            url,
            {"inputs": [{"name": "input", "shape": [1, 10], "datatype": "FP32", "data": array[0].tolist()}]},
            model_name=model,
        )
        and "answered",
        "shape": await failed(client.infer(url, wrong, model_name=model)),
        "missing": await failed(client.infer(url, right, model_name="other")),
    }
    await client.close()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], np.load(sys.argv[3])))))
