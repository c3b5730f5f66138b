"""Table of input formats."""

from __future__ import annotations

from cvbatch.sources.base import InputFormat
from cvbatch.sources.image_files import ImageFiles
from cvbatch.sources.manifest_list import ManifestList
from cvbatch.sources.parquet import Parquet
from cvbatch.sources.webdataset import WebDataset
from cvbatch.sources.zip_files import ZipFiles

# Key: `source.format` of the job file.
INPUT_FORMATS: dict[str, InputFormat] = {
    "images": ImageFiles(),
    "parquet": Parquet(),
    "webdataset": WebDataset(),
    "zip": ZipFiles(),
    "manifest": ManifestList(),
}
