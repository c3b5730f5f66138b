"""No extra is installed, in any process whose PYTHONPATH has this folder."""

from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError

MODULES = {
    *("tensorflow", "keras", "h5py", "tensorboardX"),
    *("keras_hub", "onnx", "onnxruntime", "matplotlib", "skimage", "polars", "duckdb"),
    *("aiohttp", "opencensus"),  # of ray[default]
}
find_module, find_distribution = PathFinder.find_spec, Distribution.from_name


def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in MODULES else find_module(name, path, target)


def from_name(name):
    if name.replace("-", "_") in MODULES:
        raise PackageNotFoundError(name)
    return find_distribution(name)


PathFinder.find_spec = staticmethod(find_spec)
Distribution.from_name = staticmethod(from_name)
