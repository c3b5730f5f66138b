"""Find images whose header is valid but whose pixels cannot be decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cvbatch.core.types import EncodedImage, Failure
from cvbatch.images.decode import decode
from cvbatch.images.orientation import DEFAULT_LIMITS

_MAX_THREADS = 16
_AHEAD = 4  # images per thread that are decoded ahead of the one that is yielded


class ImageCheck:
    """Decodes each image once, in threads; later passes reuse the result of the first.

    Args:
        is_enabled: False: no image is decoded.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled
        self._damage: dict[str, Failure] = {}  # by image id
        self._is_repeated = False

    def with_damage(
        self, images: Iterator[EncodedImage]
    ) -> Iterator[tuple[EncodedImage, Failure | None]]:
        """Yield the images, in order, with the reason why their pixels cannot be decoded."""
        if not self._is_enabled or self._is_repeated:
            yield from ((image, self._damage.get(image.image_id)) for image in images)
            return
        threads = min(os.cpu_count() or 1, _MAX_THREADS)
        pending: deque[tuple[EncodedImage, Future[Failure | None]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for image in images:
                pending.append((image, pool.submit(_damage_of, image)))
                if len(pending) > threads * _AHEAD:
                    yield self._finished(*pending.popleft())
            while pending:
                yield self._finished(*pending.popleft())

    def _finished(
        self, image: EncodedImage, result: Future[Failure | None]
    ) -> tuple[EncodedImage, Failure | None]:
        damage = result.result()
        if damage is not None:
            self._damage[image.image_id] = damage
        return image, damage

    def finish_first_pass(self) -> None:
        """Reuse the results from now on."""
        self._is_repeated = True


def _damage_of(image: EncodedImage) -> Failure | None:
    if image.failure is not None or not image.data:
        return None
    decoded = decode(image.data, [], DEFAULT_LIMITS)
    return decoded if isinstance(decoded, Failure) else None
