"""An S3 server (rclone) over a local folder, with signed requests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "AKIDEXAMPLETESTS", "a-made-up-secret-for-tests"
START_LIMIT_S = 30.0
RCLONE = Path(sys.executable).parent / "rclone"


@dataclass(frozen=True)
class S3Server:
    """A running server: its folder and endpoint."""

    folder: Path  # each folder in it is a bucket
    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        return s3_env(self.endpoint)

    @property
    def bucket_uri(self) -> str:
        return "s3://bucket"

    @property
    def bucket(self) -> Path:
        """The folder with the objects of the bucket."""
        return self.folder / "bucket"


def s3_env(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Serve `folder` until the block ends; it has one bucket, named "bucket"."""
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [RCLONE, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{KEY},{SECRET}", "--config", "/dev/null", "--vfs-cache-mode", "off"]
    command += ["--dir-cache-time", "1s"]  # tests also write files into the folder
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(process, port)
        yield S3Server(folder, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with status {process.returncode}")
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"the S3 server did not listen within {START_LIMIT_S} s")
