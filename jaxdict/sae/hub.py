"""SAEs on the Hugging Face Hub: `hf://owner/repo/folder`, and SAELens' names of releases, fetched into the Hub's own cache."""

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxdict.containers.tensors import BadFileError
from jaxdict.sae.locating import WEIGHT_SUFFIXES, SeveralError, may_be_weights
from jaxdict.sae.reading import neuronpedia_id
from jaxdict.storage import listing, natural_order, one_line

# A path keeps only one slash.
ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")
# Seconds to wait for the Hub before its cache is looked at.
TIMEOUT = 20.0
# Releases whose folders have the names that SAELens gives their SAEs; others stand in the table of an installed sae-lens.
RELEASES = {
    "gpt2-small-res-jb": "jbloom/GPT2-Small-SAEs-Reformatted",
    **{
        f"gemma-scope-{size}-pt-{site}": f"google/gemma-scope-{size}-pt-{site}"
        for size in ("2b", "9b")
        for site in ("res", "mlp", "att")
    },
}


class Address(NamedTuple):
    """A folder or file of a repository on the Hub."""

    repo: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return (
            f"hf://{self.repo}"
            + (f"@{self.revision}" if self.revision else "")
            + (f"/{self.path}" if self.path else "")
        )


def is_address(path) -> bool:
    """Whether this names something on the Hub: `hf://...`, or a release of SAELens where there is no such path here.

    >>> is_address("hf://owner/repo/layer_3"), is_address("gpt2-small-res-jb/blocks.8.hook_resid_pre"), is_address("runs/sae")
    (True, True, False)
    """
    text = str(path)
    release = text.partition("/")[0]
    return text.startswith("hf:/") or (
        not Path(text).exists() and (release in RELEASES or _section(release) is not None)
    )


def fetch(text: str) -> Path:
    """The file or folder of an SAE on this machine, fetched if the Hub's cache does not hold it.

    Nothing is fetched where several SAEs lie at the address: they are listed. Raises ValueError for an address that is not
    understood or not there, OSError where the Hub cannot be reached and its cache does not hold the files.
    """
    at, hub = parse(text), _hub()
    names = _names(hub, at)
    if names is None:
        return _cached(hub, at)
    folder = _folder(at, names)
    above = folder.rpartition("/")[0]
    beside = [f"{place}/*.json" if place else "*.json" for place in {folder, above}]
    files = [folder] if folder in names else [f"{folder}/*" if folder else "*"]
    try:
        root = hub.snapshot_download(at.repo, revision=at.revision, allow_patterns=files + beside)
    except Exception as error:  # the network's own errors differ with the version of the library
        raise OSError(f"{at}: could not be fetched: {one_line(error)}") from error
    return Path(root) / folder


def fetch_file(repo: str, name: str) -> Path:
    """One file of a repository on the Hub, fetched if its cache does not hold it; errors as those of `fetch`."""
    at, hub = Address(repo, name), _hub()
    names = _names(hub, at)
    if names is None:
        return _cached(hub, at)
    if name not in names:
        raise BadFileError(f"{at}: the repository holds no {name}")
    return Path(hub.hf_hub_download(repo, name))


def parse(text: str) -> Address:
    """The address that a text names.

    >>> parse("hf://owner/repo@main/layer_3/trainer_0")
    Address(repo='owner/repo', path='layer_3/trainer_0', revision='main')
    >>> parse("gpt2-small-res-jb/blocks.8.hook_resid_pre").repo
    'jbloom/GPT2-Small-SAEs-Reformatted'
    """
    if not text.startswith("hf:/"):
        return _of_release(*text.partition("/")[::2])
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise BadFileError(f"{text}: not understood; write hf://owner/repo/folder or hf://owner/repo@revision/folder")
    return Address(found["repo"], (found["path"] or "").strip("/"), found["revision"])


def _of_release(release: str, sae_id: str) -> Address:
    section = _section(release)
    if section is None:
        return Address(RELEASES[release], sae_id.strip("/"))
    paths = {str(entry["id"]): str(entry.get("path") or entry["id"]) for entry in section.get("saes") or ()}
    if sae_id not in paths:
        raise BadFileError(
            f"{release}/{sae_id}: the release holds no such SAE; its {len(paths)} are {listing(paths)}: write {release}/ID"
        )
    return Address(str(section["repo_id"]), paths[sae_id].strip("/"))


def neuronpedia_of(text: str) -> str | None:
    """What Neuronpedia calls an SAE that SAELens names, by the table of an installed sae-lens; None where it has none.

    >>> neuronpedia_of("hf://owner/repo/layer_3") is neuronpedia_of("runs/sae") is None
    True
    """
    release, _, sae_id = text.partition("/")
    section = None if text.startswith("hf:/") else _section(release)
    entries = () if section is None else section.get("saes") or ()
    return next((neuronpedia_id(entry.get("neuronpedia")) for entry in entries if str(entry["id"]) == sae_id), None)


def _section(release: str) -> dict[str, Any] | None:
    """A release in the table of an installed sae-lens, which is not imported (that takes torch); None where it is not there."""
    package = importlib.util.find_spec("sae_lens") if re.fullmatch(r"[\w.-]+", release) else None
    table = None if package is None or package.origin is None else Path(package.origin).parent / "pretrained_saes.yaml"
    if table is None or not table.is_file():
        return None
    # The table is long, and reading all of it takes seconds.
    found = re.search(
        rf"^{re.escape(release)}:[^\n]*\n(?:(?:[ \-#][^\n]*)?\n)*", table.read_text(encoding="utf-8") + "\n", re.M
    )
    if found is None:
        return None
    import yaml

    return yaml.safe_load(found.group())[release]


def _names(hub, at: Address) -> list[str] | None:
    """The files of a repository, without fetching any; None where the Hub cannot be reached."""
    refused = hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError
    try:
        # One request: the lists by pages are asked for again and again where there is no network.
        found = hub.HfApi().model_info(at.repo, revision=at.revision, timeout=TIMEOUT)
        return [file.rfilename for file in found.siblings or ()]
    except hub.errors.GatedRepoError as error:
        raise BadFileError(f"{at}: access must be asked for on its page and `hf auth login` run here first") from error
    except refused as error:
        raise BadFileError(
            f"{at}: the Hub holds no such repository or revision, or shows it only to some: run `hf auth login`"
        ) from error
    except hub.errors.HFValidationError as error:
        raise BadFileError(f"{at}: {one_line(error)}") from error
    except (
        Exception
    ):  # offline by setting or by accident: the errors of the network differ with the version of the library
        return None


def _folder(at: Address, names: list[str]) -> str:
    """The one file or folder of weights at an address. Raises ValueError that lists them where there are several, or none."""
    if at.path in names:
        return at.path
    inside = [name for name in names if not at.path or name.startswith(at.path + "/")]
    folders = {
        name.rpartition("/")[0].removesuffix("/checkpoints")
        for name in inside
        if may_be_weights(name.rpartition("/")[2])
    }
    if at.path in folders or len(folders) == 1:
        return at.path if at.path in folders else folders.pop()
    if folders:
        ordered = sorted(folders, key=natural_order)
        places = [Path(folder) for folder in ordered]
        raise SeveralError(
            f"{at}: holds {len(folders)} folders of weights ({listing(ordered)}); give one of them", places
        )
    tops = sorted({name.partition("/")[0] for name in names}, key=natural_order)
    raise BadFileError(f"{at}: holds no weights; the repository holds {listing(tops)}")


def _cached(hub, at: Address) -> Path:
    """Where the cache holds an address. Raises OSError where it does not."""
    part = f" {at.path}" if Path(at.path).suffix in (".json", *WEIGHT_SUFFIXES) else f" --include '{at.path}/*'"
    advice = (
        f"connect (and unset HF_HUB_OFFLINE), or run `hf download {at.repo}{part if at.path else ''}` where there is a network "
        "and give the folder"
    )
    try:
        root = Path(hub.snapshot_download(at.repo, revision=at.revision, local_files_only=True))
    except Exception as error:  # not there, in the words of whichever version
        raise OSError(
            f"{at}: the Hub cannot be reached and its cache does not hold this repository; {advice}"
        ) from error
    if not (root / at.path).exists():
        folders = {path.parent.relative_to(root).as_posix() for path in root.rglob("*") if may_be_weights(path.name)}
        held = listing(sorted(folders, key=natural_order))
        raise OSError(f"{at}: the Hub cannot be reached and its cache holds of this repository only {held}; {advice}")
    return root / at.path


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        words = 'files on the Hub need huggingface_hub: pip install "jaxdict[hub]"'
        raise ModuleNotFoundError(words, name=error.name) from error
    return huggingface_hub
