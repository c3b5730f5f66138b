"""Prediction jobs; the package is also the function `cvbatch.predict` of notebooks.

Python binds a package's name in its parent when one of its modules is imported, in the place of a
function with that name. Therefore the package itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, images: Any, model: Any, **options: Any) -> Any:
        from cvbatch.predict.in_process import predict

        return predict(images, model, **options)


sys.modules[__name__].__class__ = _CallablePackage
