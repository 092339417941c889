"""Released repositories on the hub: `org/name[@revision]` as a source of conversion.

Needs huggingface_hub (extra `hub`) for addresses, credentials and its cache. Only configs, weights and tokenizer files are
fetched, each by a name known here or listed in the weights' own index; code is never downloaded. The revision is resolved to
a commit once, and everything comes from it.

Files are kept below the library's own folder, half-finished ones as `*.part`: a download that was interrupted, even by the
end of the process, goes on where it stopped. (huggingface_hub itself begins a file anew.)
"""

import contextlib
import hashlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from nextstep_jax.conversion import text_tokenizer
from nextstep_jax.conversion.released import MODEL_FILES, TOKENIZER_FILES
from nextstep_jax.conversion.torch_files import read_weight_map
from nextstep_jax.errors import InputError

# The release keeps its image tokenizer either inside a model's repository or in this one, beside it.
SIBLING = "NextStep-1-f8ch16-Tokenizer"
ATTEMPTS = 4  # in a row without a byte, before a download gives up
TIMEOUT = 30  # seconds without an answer

_NAME = re.compile(r"(?P<repository>(?P<org>[A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?")


class Download(NamedTuple):
    """Where a repository lies now.

    Attributes:
      folder: laid out like the repository.
      origin: "org/name@commit".
      vae: folder of the image tokenizer if it came from the sibling repository, and its origin.
    """

    folder: pathlib.Path
    origin: str
    vae: pathlib.Path | None = None
    vae_origin: str | None = None


def is_name(text: str) -> bool:
    """Whether a source could be a repository of the hub."""
    return _NAME.fullmatch(text) is not None


def download(name: str, log: Callable[[str], None], with_vae: bool = True) -> Download:
    """Fetch what a conversion needs of a repository: config, weights, text tokenizer, image tokenizer.

    Args:
      name: `org/name[@revision]`; a branch, tag or commit, by default the main branch.
      log: called with one line, the size, before the download starts.
      with_vae: fetch the image tokenizer too, from the repository's own vae/ or from the sibling repository.

    Raises:
      InputError: huggingface_hub is not installed, no such repository or revision, or a failed download.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{name}: no such folder; to fetch it from the hub, install nextstep_jax[hub]") from error
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: neither a folder nor a hub name, ORG/REPOSITORY or ORG/REPOSITORY@REVISION")
    main = _Repository(huggingface_hub, found["repository"], found["revision"])
    wanted = main.weights(MODEL_FILES) or main.weights(TOKENIZER_FILES)
    if not wanted or "config.json" not in main.sizes:
        raise InputError(f"{name}: the repository has no config.json with {', '.join(MODEL_FILES)}")
    wanted |= {"config.json", *({text_tokenizer.FILE, *text_tokenizer.COMPANIONS} & main.sizes.keys())}

    sibling = None
    own_vae = main.weights(TOKENIZER_FILES, "vae/") if "vae/config.json" in main.sizes else set()
    if with_vae and own_vae:
        wanted |= {"vae/config.json"} | own_vae
    elif with_vae and main.weights(MODEL_FILES):
        sibling = _Repository.find(huggingface_hub, f"{found['org']}/{SIBLING}")
    folder = main.fetch(wanted, log)
    if not sibling:
        return Download(folder, main.origin)
    vae = sibling.fetch({"config.json"} | sibling.weights(TOKENIZER_FILES), log)
    return Download(folder, main.origin, vae, sibling.origin)


class _Repository:
    """One repository at one commit."""

    def __init__(self, library: Any, repository: str, revision: str | None):
        self._library, self._name = library, repository
        with _asking(repository):
            api = library.HfApi()
            info = _persist(library, lambda: api.model_info(repository, revision=revision, files_metadata=True))
            if not re.fullmatch("[0-9a-f]{40,64}", info.sha):
                raise ValueError(f"the revision is {info.sha!r:.100}, which is no commit")
        self._commit = info.sha
        self._folder = pathlib.Path(library.constants.HF_HOME) / "nextstep_jax" / repository.replace("/", "--") / info.sha
        self.origin = f"{repository}@{info.sha}"
        self.sizes: Mapping[str, int] = {file.rfilename: file.size or 0 for file in info.siblings}

    @classmethod
    def find(cls, library: Any, repository: str) -> "_Repository | None":
        """The repository, or None if there is none of this name."""
        with _asking(repository):
            exists = _persist(library, lambda: library.HfApi().repo_exists(repository))
        return cls(library, repository, None) if exists else None

    def weights(self, candidates: Collection[str], folder: str = "") -> set[str]:
        """The files of the weights that a folder would be read from, as `open_weights` chooses; fetches a small index."""
        for candidate in candidates:
            index = f"{folder}{candidate}.index.json"
            if index in self.sizes:
                return {index} | {folder + shard for shard in read_weight_map(self._get(index)).values()}
            if folder + candidate in self.sizes:
                return {folder + candidate}
        return set()

    def fetch(self, files: Collection[str], log: Callable[[str], None]) -> pathlib.Path:
        """Download what is not here yet; the folder the files lie in."""
        absent = sorted(set(files) - self.sizes.keys())
        if absent:
            raise InputError(f"{self.origin}: the repository lacks {', '.join(absent)}, which its index names")
        todo = sorted(file for file in files if not (self._folder / file).exists() and not self._cached(file))
        if todo:
            size, here = (sum(f(file) for file in todo) for f in (self.sizes.__getitem__, self._size_of_part))
            resumed = f", {here / 1e9:.2f} GB of it already here" if here else ""
            log(f"downloading {len(todo)} files, {size / 1e9:.2f} GB{resumed}, of {self.origin}")
        for file in sorted(files):
            self._get(file)
        return self._folder

    def _get(self, file: str) -> pathlib.Path:
        """The file on this machine, fetched if need be, in one piece or not at all."""
        target = self._folder / file
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _asking(self._name), self._library.utils.WeakFileLock(target.with_name(target.name + ".lock")):
            if cached := self._cached(file):
                target.unlink(missing_ok=True)  # a link whose file is gone
                target.symlink_to(pathlib.Path(cached).resolve())
            elif not target.exists():
                self._download(file, target)
        return target

    def _cached(self, file: str) -> str | None:
        """Where huggingface_hub's own cache has the file."""
        path = self._library.try_to_load_from_cache(self._name, file, revision=self._commit)
        return path if isinstance(path, str) else None

    def _size_of_part(self, file: str) -> int:
        part = self._folder / f"{file}.part"
        return part.stat().st_size if part.exists() else 0

    def _download(self, file: str, target: pathlib.Path) -> None:
        url = self._library.hf_hub_url(self._name, file, revision=self._commit)
        metadata = _persist(self._library, lambda: self._library.get_hf_file_metadata(url))
        part = target.with_name(target.name + ".part")
        _persist(self._library, lambda: self._append(url, part), reached=lambda: self._size_of_part(file))
        found = part.stat().st_size
        digest = metadata.etag if re.fullmatch("[0-9a-f]{64}", metadata.etag or "") else None  # large files are named by it
        if metadata.size not in (None, found) or (digest and _sha256(part) != digest):
            part.unlink()
            raise InputError(f"{self.origin}: {file} arrived damaged ({found} bytes); try again")
        os.replace(part, target)

    def _append(self, url: str, part: pathlib.Path) -> None:
        """Ask for what follows the bytes already in `part`, and add it as it comes."""
        start = part.stat().st_size if part.exists() else 0
        headers = self._library.utils.build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        session = self._library.get_session()
        with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing follows
                return part.touch()
            self._library.utils.hf_raise_for_status(response)
            resumes = response.status_code == 206
            with open(part, "ab" if resumes else "wb") as stream:
                for chunk in response.iter_raw():
                    stream.write(chunk)


def _persist(library: Any, action: Callable[[], Any], reached: Callable[[], int] = lambda: 0) -> Any:
    """The result of an action that the network may break: repeated while it gets further, else a few times."""
    attempts = 0
    while True:
        before = reached()
        try:
            return action()
        except (ValueError, library.errors.HfHubHTTPError, library.errors.OfflineModeIsEnabled):
            raise  # an answer; asking again would not change it
        except Exception:
            attempts = attempts + 1 if reached() == before else 0
            if attempts == ATTEMPTS:
                raise
            time.sleep(attempts)


@contextlib.contextmanager
def _asking(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library passes on whatever its transport raises
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{name}: no such folder, and the hub says: {reason[:300]}") from error


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
