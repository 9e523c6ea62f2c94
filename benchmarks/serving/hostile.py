"""What hostile peers send, and how: every one must be refused or let go, and none may cost the others."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from serving_bundles import cases

from serving.asking import predict_request
from serving.servers import Request

INFER = "/v2/models/tiny/infer"
DEFLATED_DICOM = b"1.2.840.10008.1.2.1.99"


def send(port: int, wire: bytes, *, timeout_s: float = 20.0) -> str:
    """Send it all, and say what came back: a status, or how the connection ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as peer:
        failed = ""
        try:
            peer.sendall(wire)
        except OSError as error:  # refused before it was read: the answer may be here nevertheless
            failed = type(error).__name__
        return _status(peer) or failed or "closed"


def _status(peer: socket.socket) -> str:
    data = b""
    try:
        while b"\r\n" not in data and (piece := peer.recv(1 << 16)):
            data += piece
    except TimeoutError:
        return "hangs"
    except OSError as error:
        return type(error).__name__
    return data[9:12].decode() if data.startswith(b"HTTP/1.1 ") else ""


def flood(port: int, wires: Sequence[bytes], *, times: int = 1, peers: int = 8) -> Counter[str]:
    """All of them, several at once."""
    with ThreadPoolExecutor(peers) as pool:
        return Counter(pool.map(lambda wire: send(port, wire), [*wires] * times))


def drip(port: int, head: bytes, drop: bytes, *, peers: int, seconds: float) -> Counter[str]:
    """Slow loris: many connections, each of which sends another drop before anybody could call it idle."""
    found: Counter[str] = Counter()
    opened = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(peers)]
    until = time.monotonic() + seconds
    for peer in opened:
        _drop(peer, head)
    while time.monotonic() < until:
        for peer in opened:
            _drop(peer, drop)
        time.sleep(0.2)
    for peer in opened:
        peer.settimeout(0.05)
        found[_status(peer) or "closed"] += 1
        peer.close()
    return found


def _drop(peer: socket.socket, data: bytes) -> None:
    try:
        peer.send(data, socket.MSG_DONTWAIT)
    except OSError:  # it was let go; what it was told is read at the end
        return


def every(seconds: float, act: Callable[[], str], *, peers: int) -> Counter[str]:
    """The same thing again and again, by several at once."""
    found, lock, until = Counter[str](), threading.Lock(), time.monotonic() + seconds

    def one(_: int) -> None:
        while time.monotonic() < until:
            word = act()
            with lock:
                found[word] += 1

    with ThreadPoolExecutor(peers) as pool:
        list(pool.map(one, range(peers)))
    return found


# Bodies


def in_chunks(request: Request, size: int) -> bytes:
    """The same request, its body in chunks of so many bytes."""
    wire = request.wire()
    head = wire[: wire.index(b"\r\n\r\n")].decode().split("\r\n")
    kept = [line for line in head if not line.startswith("Content-Length")]
    body = request.body
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return "\r\n".join([*kept, "Transfer-Encoding: chunked", "", ""]).encode() + framed + b"0\r\n\r\n"


def zeros(size: int, window_bits: int) -> bytes:
    """So many bytes of nothing, packed a thousandfold; made block by block, so that it takes no time."""
    block = 1 << 24
    packer = zlib.compressobj(9, wbits=window_bits)
    start = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + again * (size // block - 1) + packer.flush()


def gzip_bombs() -> list[bytes]:
    """1 MB that becomes 1 GB, for both ways to ask; and what becomes just as much as is taken."""
    body = zeros(1 << 30, 31)
    return [
        Request(path=INFER, headers={"Content-Encoding": "gzip"}, body=body).wire(),
        predict_request(body, **{"Content-Encoding": "gzip"}).wire(),
        Request(path=INFER, headers={"Content-Encoding": "deflate"}, body=zeros(1 << 30, 15)).wire(),
        predict_request(gzip.compress(bytes(127 << 20)), **{"Content-Encoding": "gzip"}).wire(),
    ]


def dicom_bombs() -> list[bytes]:
    """195 KB whose data set is 200 MB of zeros; and one that says that it has 3.6 thousand million pixels."""
    head = bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI" + struct.pack("<H", len(DEFLATED_DICOM))
    deflated = head + DEFLATED_DICOM + zeros(200 << 20, -15)
    shape = (b"\x28\x00\x10\x00US\x02\x00\x60\xea", b"\x28\x00\x11\x00US\x02\x00\x60\xea")
    plain = bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00" + b"".join(shape)
    return [predict_request(body, "application/dicom").wire() for body in (deflated, plain)]


def png_bombs() -> list[bytes]:
    """900 million pixels in 1 MB, and the largest picture that is still decoded, in colours."""
    huge = zlib.compress(bytes(1 << 20))
    head = struct.pack(">LLBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    lying = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", huge) + _chunk(b"IEND", b"")
    file = io.BytesIO()
    Image.new("RGBA", (5000, 5000)).save(file, "PNG", compress_level=1)
    return [predict_request(body).wire() for body in (lying, file.getvalue())]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def lying_shapes() -> list[bytes]:
    """Tensors that are not as large as they say, say impossible things, or nothing at all."""
    x = cases(1)
    width, size = x.shape[1], x.nbytes
    shapes: list[object] = [
        [1, width + 1], [2, width], [0, width], [-1, width], [1, -width], [width], [1, 1, width], [], None,
        [2**62, 4], [2**31, 2**31, 2**31], [2**64, 0], [1.0, width], [True, width], ["1", width],
        [1] * 40 + [width], [65, width], {"0": 1}, 10**100, [10**4000, width],
    ]  # fmt: skip
    found = [_tensor(shape=shape) for shape in shapes]
    found += [_tensor(parameters={"binary_data_size": n}) for n in (size - 1, size + 1, -size, 2**63, "40")]
    found += [_tensor(datatype=kind) for kind in ("FP64", "FP16", "BYTES", "fp32", "", None, 7)]
    found += [_tensor(length=n) for n in ("0", "-1", "99999", "1e3", "٣", "9" * 40)]
    found += [_tensor(tail=tail) for tail in (b"", x.tobytes()[:-1], x.tobytes() * 2, x.tobytes() + b"x")]
    found += [_tensor(data=[[1, 2], [3]]), _tensor(data=[0] * (width - 1)), _tensor(data="AAAA")]
    nan, infinite = x.copy(), x.copy()
    nan[0, 0], infinite[0, 0] = np.nan, -np.inf
    return found + [_tensor(tail=bad.tobytes()) for bad in (nan, infinite)]


def _tensor(*, tail: bytes | None = None, length: str | None = None, **changes: object) -> bytes:
    x = cases(1)
    one: dict[str, object] = {"name": "input", "datatype": "FP32", "shape": list(x.shape)}
    one |= {"parameters": {"binary_data_size": x.nbytes}} if "data" not in changes else {}
    head = json.dumps({"inputs": [one | changes]}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(head))}
    body = head + (x.tobytes() if tail is None else tail)
    return Request(path=INFER, headers=headers, body=body).wire()


def hostile_json() -> list[bytes]:
    """JSON that is deep, huge, ambiguous, or none; for both ways to ask."""
    row = b"0,0,0,0,0,0,0,0,0,0"
    start = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,10],"data":['
    bodies = [
        b'{"inputs":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"inputs":' * 100_000 + b"1" + b"}" * 100_000,
        start + b"1" + b"0" * 6000 + b"," + row[2:] + b"]}]}",
        start + b"1e400," + row[2:] + b"]}]}",
        start + b"1e39," + row[2:] + b"]}]}",
        start + b"1" + b"0" * 300 + b"," + row[2:] + b"]}]}",
        start + b"NaN," + row[2:] + b"]}]}",
        start + b"-Infinity," + row[2:] + b"]}]}",
        start + b"true," + row[2:] + b"]}]}",
        start + b'"1",' + row[2:] + b"]}]}",
        start + b"null," + row[2:] + b"]}]}",
        start + row + b']}],"inputs":[]}',
        start + row + b'],"data":[' + row + b"]}]}",
        start + row + b']}],"id":"\\u0000\\u0007"}',
        start + row + b']}],"id":"\\ud800"}',
        start + row + b']}],"parameters":{"subject":{"a":[1]}}}',
        start + row + b']}],"outputs":[{"name":"\\ud800"}]}',
        start + row + b"]}]} trailing",
        b'{"inputs":[' + b"{}," * 1_000_000 + b"{}]}",
        b'{"inputs":[' + b"1," * 7_000_000 + b"1]}",
        b'{"a":"' + b"\\u0041" * 2_000_000 + b'"}',
        b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\xc0\xaf", b"[]", b"1", b'"', b"{", b"nul", bytes(1000),
    ]  # fmt: skip
    plain: Mapping[str, str] = {"Content-Type": "application/json"}
    asked = [Request(path=INFER, headers=plain, body=body).wire() for body in bodies]
    return asked + [predict_request(body, "application/json").wire() for body in bodies]
