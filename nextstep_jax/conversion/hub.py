"""Released repositories on the hub: `org/name[@revision]` as a source of conversion.

Needs huggingface_hub (extra `hub`), which keeps finished and half-finished files in its cache, so that an interrupted
download goes on where it stopped. Only configs, weights and tokenizer files are fetched, each by a name known here or listed
in the weights' own index; code is never downloaded. The revision is resolved to a commit once, and everything comes from it.
"""

import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from nextstep_jax.conversion import text_tokenizer
from nextstep_jax.conversion.released import MODEL_FILES, TOKENIZER_FILES
from nextstep_jax.conversion.torch_files import read_weight_map
from nextstep_jax.errors import InputError

# The release keeps its image tokenizer either inside a model's repository or in this one, beside it.
SIBLING = "NextStep-1-f8ch16-Tokenizer"

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


def download(name: str, say: Callable[[str], None], with_vae: bool = True) -> Download:
    """Fetch what a conversion needs of a repository: config, weights, text tokenizer, image tokenizer.

    Args:
      name: `org/name[@revision]`; a branch, tag or commit, by default the main branch.
      say: told the size before the download starts.
      with_vae: fetch the image tokenizer too, from the repository's own vae/ or from the sibling repository.

    Raises:
      InputError: huggingface_hub is not installed, no such repository or revision, or a failed download.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{name}: no such folder; to fetch it from the hub, install nextstep_jax[hub]") from error
    found = _NAME.fullmatch(name)
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
    folder = main.fetch(wanted, say)
    if not sibling:
        return Download(folder, main.origin)
    vae = sibling.fetch({"config.json"} | sibling.weights(TOKENIZER_FILES), say)
    return Download(folder, main.origin, vae, sibling.origin)


class _Repository:
    """One repository at one commit."""

    def __init__(self, library: Any, repository: str, revision: str | None):
        self._library, self._name = library, repository
        info = self._ask(library.HfApi().model_info, repository, revision=revision, files_metadata=True)
        self._commit = info.sha
        self.origin = f"{repository}@{info.sha}"
        self.sizes: Mapping[str, int] = {file.rfilename: file.size or 0 for file in info.siblings}

    @classmethod
    def find(cls, library: Any, repository: str) -> "_Repository | None":
        """The repository, or None if there is none of this name."""
        if not library.HfApi().repo_exists(repository):
            return None
        return cls(library, repository, None)

    def weights(self, candidates: Collection[str], folder: str = "") -> set[str]:
        """The files of the weights that a folder would be read from, as `open_weights` chooses; fetches a small index."""
        for candidate in candidates:
            index = f"{folder}{candidate}.index.json"
            if index in self.sizes:
                return {index} | {folder + shard for shard in read_weight_map(self._get(index)).values()}
            if folder + candidate in self.sizes:
                return {folder + candidate}
        return set()

    def fetch(self, files: Collection[str], say: Callable[[str], None]) -> pathlib.Path:
        """Download what is not in the cache yet; the folder they lie in."""
        absent = sorted(set(files) - self.sizes.keys())
        if absent:
            raise InputError(f"{self.origin}: the repository lacks {', '.join(absent)}, which its index names")
        cached = self._library.try_to_load_from_cache
        todo = [file for file in files if not isinstance(cached(self._name, file, revision=self._commit), str)]
        size = sum(self.sizes[file] for file in todo)
        if todo:
            say(f"downloading {len(todo)} files, {size / 1e9:.2f} GB, of {self.origin}")
        for file in sorted(files):
            path = self._get(file)
        return path.parents[file.count("/")]

    def _get(self, file: str) -> pathlib.Path:
        return pathlib.Path(self._ask(self._library.hf_hub_download, self._name, file, revision=self._commit))

    def _ask(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:  # the library passes on whatever its transport raises
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{self._name}: no such folder, and the hub says: {reason[:300]}") from error
