"""A stand-in for the server of OpenML on this machine, which serves what it is given in OpenML's formats.

python tests/openml_server.py 8000    # CIFAR-10 and MNIST in full size, of random pixels, until Ctrl-C
"""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

API = "/api/v1/json/data/"


def arff(pixels: np.ndarray, labels: list[str], title: str) -> bytes:
    """Dense ARFF with a column for each pixel, and the class, as OpenML has it for images."""
    columns = [f"@ATTRIBUTE pixel{i + 1} real" for i in range(pixels.shape[1])]
    classes = ",".join(sorted(set(labels)))
    head = f"% {title}, made up\n@RELATION {title}\n\n" + "\n".join(columns)
    head += f"\n@ATTRIBUTE class {{{classes}}}\n\n@DATA\n"
    words = np.array([str(level) for level in range(int(pixels.max()) + 1)]) if pixels.dtype.kind in "ui" else None
    rows = (words[row] if words is not None else map(str, row) for row in pixels)
    return (head + "\n".join(",".join((*row, label)) for row, label in zip(rows, labels, strict=True)) + "\n").encode()


def dataset(number: int, title: str, pixels: np.ndarray, labels: list[str]) -> dict[str, bytes]:
    """The files of a dataset by path: its description, features and qualities, and the ARFF."""
    content, place = arff(pixels, labels, title), f"/data/v1/download/{number}000/{title}.arff"
    plain = {"is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0"}
    features = [
        {"index": str(i), "name": f"pixel{i + 1}", "data_type": "numeric", "is_target": "false"} | plain
        for i in range(pixels.shape[1])
    ]
    target = {"index": str(pixels.shape[1]), "name": "class", "data_type": "nominal", "is_target": "true"}
    target |= {"nominal_values": json.dumps(sorted(set(labels)))} | plain
    about = {
        "id": str(number),
        "name": title,
        "version": "1",
        "description": "made up",
        "format": "ARFF",
        "licence": "Public",
        "url": f"https://www.openml.org{place}",
        "file_id": f"{number}000",
        "default_target_attribute": "class",
        "status": "active",
        "md5_checksum": hashlib.md5(content).hexdigest(),
    }
    qualities = [{"name": "NumberOfInstances", "value": f"{len(pixels)}.0"}]
    documents = {
        f"{API}{number}": {"data_set_description": about},
        f"{API}features/{number}": {"data_features": {"feature": [*features, target]}},
        f"{API}qualities/{number}": {"data_qualities": {"quality": qualities}},
    }
    return {path: json.dumps(document).encode() for path, document in documents.items()} | {place: content}


class Server(ThreadingHTTPServer):
    """Serves `files`; what was asked for is in `asked`, with the byte from which on.

    The next answers with an ARFF break off after the numbers of bytes in `cuts`. `honest` says whether the length is
    announced then, so that the client sees it; `ranges`, whether a download may go on. What is in `later` takes the
    place of a file once that was asked for.
    """

    def __init__(self, files: dict[str, bytes], port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.files, self.later, self.asked, self.cuts = files, {}, [], []
        self.honest = self.ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, begun = self.server, 0
        if server.ranges and "Range" in self.headers:
            begun = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        server.asked.append((self.path, begun))
        if (content := server.files.get(self.path)) is None:
            return self.send_error(404)
        server.files.update({path: server.later.pop(path) for path in {self.path} & server.later.keys()})
        if begun >= len(content):
            return self.send_error(416)
        some = content[begun:]
        cut = server.cuts.pop(0) if server.cuts and self.path.endswith(".arff") else None
        self.send_response(206 if server.ranges else 200)
        if server.ranges:
            self.send_header("Content-Range", f"bytes {begun}-{len(content) - 1}/{len(content)}")
        if server.honest:
            self.send_header("Content-Length", str(len(some)))
        self.end_headers()
        return self.wfile.write(some[:cut])  # HTTP/1.0: the connection is closed behind it

    def log_message(self, *_):
        pass


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main(port: int) -> None:
    draws, files = np.random.default_rng(0), {}
    for number, title, examples, features in ((554, "mnist_784", 70_000, 784), (40927, "CIFAR_10", 60_000, 3072)):
        pixels = draws.integers(0, 256, (examples, features), dtype=np.uint8)
        files |= dataset(number, title, pixels, [str(i % 10) for i in range(examples)])
    with Server(files, port) as server:
        print(f"MMSTUDY_OPENML={server.url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
