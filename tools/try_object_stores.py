"""Read a scene from servers that speak S3, Azure Blob Storage and Google Cloud Storage, as segkit reads them.

    python3 -m venv stores && stores/bin/pip install 'moto[server]' gcp-storage-emulator
    npm install --prefix stores azurite
    .venv/bin/python tools/try_object_stores.py stores

The three servers come from the package registries, run on this machine, and are not part of the project's environment.
moto and Azurite compare signatures, so a wrong key must be refused; the emulator of Google takes whoever comes. Ends
with 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.windows import Window

from segkit.errors import SegkitError
from segkit.io.scene import Scene

WINDOW = Window(100, 100, 300, 300)
# Azurite's one account, the same everywhere.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
WRONG_KEY = base64.b64encode(bytes(64)).decode()


def make(path: Path) -> None:
    """Write a COG of noise."""
    pixels = np.random.default_rng(0).integers(1, 60_000, (3, 700, 700), dtype=np.uint16)
    profile = {"width": 700, "height": 700, "count": 3, "dtype": "uint16", "crs": "EPSG:32622"}
    plain = path.with_name("plain.tif")
    with rasterio.open(plain, "w", driver="GTiff", **profile, transform=Affine(10, 0, 6e5, 0, -10, 9e6)) as dataset:
        dataset.write(pixels)
    rasterio.shutil.copy(plain, path, driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=128, OVERVIEWS="NONE")


def send(method: str, url: str, body: bytes = b"", **headers: str) -> bytes:
    """Send a request, underscores in a header's name for hyphens; returns the answer's body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(url, data=body, method=method, headers={"Content-Type": "application/octet-stream"} | named)
    with urlopen(request, timeout=30) as answer:
        found: bytes = answer.read()
    return found


@contextmanager
def started(command: list[str], port: int, **environment: str) -> Iterator[None]:
    """Run a server until the block ends, which begins when its port answers."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | environment, **quiet)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"{command[0]} does not start; see the head of this file") from None
                time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def s3(stores: Path, content: bytes) -> Iterator[dict[str, dict[str, str]]]:
    """Give the environments of a reader by what becomes of it: moto, which checks signatures once all is set up."""
    port, set_up = free_port(), 5
    url = f"http://127.0.0.1:{port}"
    command = [str(stores / "bin/moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with started(command, port, INITIAL_NO_AUTH_ACTION_COUNT=str(set_up)):

        def administer(**what: str) -> str:
            scope = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0"
            kind = "application/x-www-form-urlencoded"
            form = urlencode({"Version": "2010-05-08", "UserName": "reader", **what}).encode()
            return send("POST", url, form, Authorization=scope, Content_Type=kind).decode()

        send("PUT", f"{url}/store")
        send("PUT", f"{url}/store/scene.tif", content)
        administer(Action="CreateUser")
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        administer(Action="PutUserPolicy", PolicyName="reads", PolicyDocument=policy)
        keys = administer(Action="CreateAccessKey")
        key, secret = (re.search(f"<{name}>(.*?)<", keys)[1] for name in ("AccessKeyId", "SecretAccessKey"))
        place = {
            "AWS_S3_ENDPOINT": f"127.0.0.1:{port}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_REGION": "us-east-1",
        }
        yield {
            "read": place | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret},
            "refused": place | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "wrong"},
            "refused without a key": place | {"AWS_NO_SIGN_REQUEST": "YES"},
        }


@contextmanager
def az(stores: Path, content: bytes) -> Iterator[dict[str, dict[str, str]]]:
    """Likewise: Azurite."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/{ACCOUNT}"
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry")
    command = [str(stores / "node_modules/.bin/azurite-blob"), *options, "--blobPort", str(port)]
    with started(command, port):

        def put(path: str, query: Mapping[str, str], body: bytes, **headers: str) -> None:
            now = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
            own = {"x-ms-date": now, "x-ms-version": "2021-08-06", **headers}
            size = str(len(body)) if body else ""
            lines = ["PUT", "", "", size, "", "application/octet-stream", *[""] * 6]
            lines += [f"{name}:{value}" for name, value in sorted(own.items())]
            lines += [f"/{ACCOUNT}/{ACCOUNT}{path}", *(f"{name}:{value}" for name, value in sorted(query.items()))]
            signature = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
            sign = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
            send("PUT", f"{url}{path}?{urlencode(query)}".rstrip("?"), body, Authorization=sign, **own)

        put("/store", {"restype": "container"}, b"")
        put("/store/scene.tif", {}, content, **{"x-ms-blob-type": "BlockBlob"})
        place = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};BlobEndpoint={url};AccountKey="
        yield {
            "read": {"AZURE_STORAGE_CONNECTION_STRING": place + KEY},
            "refused": {"AZURE_STORAGE_CONNECTION_STRING": place + WRONG_KEY},
        }


@contextmanager
def gs(stores: Path, content: bytes) -> Iterator[dict[str, dict[str, str]]]:
    """Likewise: the emulator of Google Cloud Storage, which knows no keys."""
    port = free_port()
    command = [str(stores / "bin/gcp-storage-emulator"), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    with started([*command, "--default-bucket=store"], port):
        url = f"http://127.0.0.1:{port}"
        send("POST", f"{url}/upload/storage/v1/b/store/o?uploadType=media&name=scene.tif", content)
        yield {"read": {"CPL_GS_ENDPOINT": f"{url}/", "GS_NO_SIGN_REQUEST": "YES"}}


def read(url: str, local: str) -> None:
    """Tell what comes of reading a window, in a process of its own."""
    try:
        scene = Scene.from_files(url)
        same = np.array_equal(scene.read(WINDOW).pixels, Scene.from_files(local).read(WINDOW).pixels)
    except SegkitError as error:
        print(f"refused: {error}")
    else:
        print(f"{'read' if same else 'WRONG PIXELS'}: {'; '.join(scene.versions)}")


def main() -> None:
    """Try all three."""
    if sys.argv[1:2] == ["read"]:
        return read(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, help="the folder in which the servers are installed")
    stores = parser.parse_args().stores.absolute()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "scene.tif"
        make(local)
        for scheme, store in (("s3", s3), ("az", az), ("gs", gs)):
            with store(stores, local.read_bytes()) as environments:
                cases = [(f"{scheme}://store/scene.tif", *case) for case in environments.items()]
                cases.append((f"{scheme}://store/none.tif", "refused as missing", environments["read"]))
                for url, expected, environment in cases:
                    command = [sys.executable, __file__, "read", url, str(local)]
                    done = subprocess.run(
                        command, env=os.environ | environment, capture_output=True, text=True, check=False
                    )
                    came = done.stdout.strip() or done.stderr.strip()
                    right = came.startswith(expected.split()[0])
                    wrong += not right
                    print(f"{'as it should' if right else 'WRONG':13} {url}, to be {expected}: {came}", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
