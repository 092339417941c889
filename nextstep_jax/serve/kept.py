"""The last images, for questions about them: in memory, few, and not for long."""

import collections
import secrets
import threading
import time
from collections.abc import Callable

from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.serve.requests import RequestError

KEPT_IMAGES = 32
KEPT_SECONDS = 600.0


class KeptImages:
    """Images by ids that cannot be guessed. May be used from several threads.

    Args:
      clock: seconds since some moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._images: collections.OrderedDict[str, tuple[float, GeneratedImage]] = collections.OrderedDict()

    def add(self, image: GeneratedImage) -> str:
        """Keep an image, in the place of the oldest if there are too many. Returns its id."""
        id = secrets.token_urlsafe(12)
        with self._lock:
            self._images[id] = self._clock() + KEPT_SECONDS, image
            self._forget()
        return id

    def get(self, id: str) -> GeneratedImage:
        """The image with this id. RequestError (404) if there is none any more."""
        with self._lock:
            self._forget()
            if id not in self._images:
                message = f"no such image: the last {KEPT_IMAGES} are kept for {KEPT_SECONDS / 60:g} minutes"
                raise RequestError(message, 404, "image")
            return self._images[id][1]

    def _forget(self) -> None:
        while self._images and (len(self._images) > KEPT_IMAGES or next(iter(self._images.values()))[0] < self._clock()):
            self._images.popitem(last=False)
