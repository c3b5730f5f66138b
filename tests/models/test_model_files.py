"""SHA-256 of model and weights files, and private copies of them."""

import hashlib

import pytest

from cvbatch.core.errors import ModelError
from cvbatch.models import model_files
from cvbatch.storage.store import Storage


@pytest.mark.parametrize("name", ["net.keras", "net.onnx", "net.h5", "net.weights.h5"])
def test_a_model_or_weights_file_has_the_sha256_of_its_bytes(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert model_files.model_sha256(Storage(), str(path)) == digest

    copy = model_files.download(Storage(), str(path), tmp_path / "copies", digest)
    assert (copy.name, copy.read_bytes()) == (name, b"weights")
    path.write_bytes(b"changed")
    with pytest.raises(ModelError, match=f"not {digest}"):
        model_files.download(Storage(), str(path), tmp_path / "copies", digest)
