"""Find images whose header is valid but whose pixels cannot be decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue

from cvbatch.core.types import EncodedImage, Failure
from cvbatch.images.decode import DecodeOne
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.images.orientation import DEFAULT_LIMITS

_AHEAD = 4  # images per thread that are decoded ahead of the one that is yielded
_TIMEOUT_S = 60.0  # to decode one image

NewDecoder = Callable[[], AbstractContextManager[DecodeOne]]


def _isolated() -> AbstractContextManager[DecodeOne]:
    return IsolatedDecoder(_TIMEOUT_S)


class ImageCheck:
    """Decodes each image once, in child processes; later passes reuse the result of the first.

    Args:
        is_enabled: False: no image is decoded.
        new_decoder: returns the decoder of one thread.
    """

    def __init__(self, *, is_enabled: bool, new_decoder: NewDecoder = _isolated) -> None:
        self._is_enabled, self._new_decoder = is_enabled, new_decoder
        self._damage: dict[str, Failure] = {}  # by image id
        self._is_repeated = False

    def with_damage(
        self, images: Iterator[EncodedImage]
    ) -> Iterator[tuple[EncodedImage, Failure | None]]:
        """Yield the images, in order, with the reason why their pixels cannot be decoded."""
        if not self._is_enabled or self._is_repeated:
            yield from ((image, self._damage.get(image.image_id)) for image in images)
            return
        threads = os.cpu_count() or 1
        pending: deque[tuple[EncodedImage, Future[Failure | None]]] = deque()
        with ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
            free: SimpleQueue[DecodeOne] = SimpleQueue()  # decoders that no thread uses
            for _ in range(threads):
                free.put(stack.enter_context(self._new_decoder()))
            for image in images:
                pending.append((image, pool.submit(_damage_of, image, free)))
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


def _damage_of(image: EncodedImage, free: SimpleQueue[DecodeOne]) -> Failure | None:
    if image.failure is not None or not image.data:
        return None
    decode = free.get()
    try:
        decoded = decode(image.data, [], DEFAULT_LIMITS)
    finally:
        free.put(decode)
    return decoded if isinstance(decoded, Failure) else None
