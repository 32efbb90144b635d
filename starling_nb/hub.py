"""The Hugging Face hub: fetch some files of a repository, or put a folder there.

The token is the one of ``hf auth login`` or ``HF_TOKEN``. No message quotes an error of the hub's, whose text may hold
the request and with it the token: only its kind is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starling_nb.errors import StarlingError


def push(folder: Path, repo_id: str, *, kind: str, private: bool, files: Sequence[str], message: str) -> str:
    """Put some files of a folder into a repository, made where it does not exist; returns its address.

    Args:
        folder: what lies in it and is not named in ``files`` stays here.
        repo_id: ``owner/name``.
        kind: ``"dataset"`` or ``"model"``.
        private: whether only its owner may see it. A repository that is already public is then refused.
        files: names or patterns relative to the folder.
        message: of the commit.

    Raises:
        StarlingError: no token, or the hub cannot be reached or refuses.
    """
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise StarlingError("no token for the Hugging Face hub: run hf auth login, or set HF_TOKEN")
    try:
        api = huggingface_hub.HfApi()
        address = str(api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True))
        public = private and not api.repo_info(repo_id, repo_type=kind).private
        if not public:
            api.upload_folder(
                folder_path=folder,
                repo_id=repo_id,
                repo_type=kind,
                allow_patterns=list(files),
                commit_message=message,
            )
        failure = ""
    except Exception as error:
        failure = _kind(error)
    if failure:
        raise StarlingError(
            f"the hub did not take {repo_id} ({failure}): check the network, the name and the token's right to write, "
            "then push again"
        )
    if public:
        raise StarlingError(f"{repo_id} is public already: pass private=False, or choose another name")
    return address


def fetch(
    repo_id: str, revision: str | None, files: Sequence[str], without: Sequence[str] = (), kind: str = "model"
) -> Path:
    """Fetch the files of a repository that match, or find them in the hub's cache; returns their folder.

    Args:
        repo_id: ``owner/name``.
        revision: a branch, tag or commit; the main branch when None.
        files: names or patterns.
        without: names or patterns of files that are left there though they match.
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        StarlingError: the hub cannot be reached, or does not give them.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, repo_type=kind, revision=revision, allow_patterns=list(files), ignore_patterns=list(without)
        )
        return Path(folder)
    except Exception as error:
        failure = _kind(error)
    raise StarlingError(
        f"there is no folder {repo_id} here, and the hub did not give a {kind} of that name ({failure}): check the "
        "name and the network, and for a gated one ask its owners for access and run hf auth login"
    )


def _kind(error: Exception) -> str:
    """What may be told of an error: its type, and the hub's status."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return type(error).__name__ + (f", status {status}" if status else "")
