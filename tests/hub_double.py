"""A double of the hub's API that keeps what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

TOKEN = "hf_NotATokenOfAnybody"


class Hub:
    """Stands for ``HfApi``: calls in their order, and the files of the last upload."""

    def __init__(self, public: bool = False, error: Exception | None = None) -> None:
        self.public, self.error = public, error
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if self.error:
            raise self.error
        self.calls.append((repo_id, options))
        return f"https://huggingface.co/{'datasets/' if options.get('repo_type') == 'dataset' else ''}{repo_id}"

    def repo_info(self, repo_id: str, **options: Any) -> Any:
        return type("Info", (), {"private": not self.public})()

    def upload_folder(self, folder_path: Path, allow_patterns: list[str] | None = None, **options: Any) -> None:
        self.calls.append(("upload", options))
        names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            self.files[name] = (folder_path / name).read_bytes()


def pushing(monkeypatch: pytest.MonkeyPatch, hub: Hub, token: str | None = TOKEN) -> None:
    """Whoever pushes meets the double, logged in with ``token``."""
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
