"""The config.json of a Hugging Face repository: from the local cache, else from the network."""

from __future__ import annotations

from pathlib import Path

from slidesparse.errors import ModelError

TIMEOUT_SECONDS = 5.0
"""How long the network may take to answer before the model counts as unreachable."""

_FILE = "config.json"


def fetch_config(repo_id: str) -> Path:
    """Locate config.json of `repo_id` ("organisation/name"), downloading it if it is not cached.

    Raises:
        ModelError: huggingface_hub is not installed, or the repository is unknown, private, gated
            or unreachable.
    """
    try:
        from huggingface_hub import (
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise ModelError(
            f"reading {repo_id} from Hugging Face needs huggingface_hub: "
            "pip install huggingface_hub, or pass a directory with its config.json"
        ) from error
    try:
        cached = try_to_load_from_cache(repo_id, _FILE)
        if isinstance(cached, str):
            return Path(cached)
        # One question without retries: a machine without a network gets its answer at once.
        get_hf_file_metadata(hf_hub_url(repo_id, _FILE), timeout=TIMEOUT_SECONDS)
        return Path(hf_hub_download(repo_id, _FILE, etag_timeout=TIMEOUT_SECONDS))
    except GatedRepoError as error:
        reason = "is gated: accept its licence on Hugging Face, then run hf auth login"
        raise ModelError(f"{repo_id} {reason}") from error
    except RepositoryNotFoundError as error:
        reason = "does not exist on Hugging Face, or is private: then run hf auth login"
        raise ModelError(f"{repo_id} {reason}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = "is not in the Hugging Face cache and the network is switched off"
        raise ModelError(f"{repo_id} {reason}") from error
    except EntryNotFoundError as error:
        raise ModelError(f"{repo_id} on Hugging Face has no {_FILE}") from error
    except Exception as error:
        # What an unreachable network raises depends on huggingface_hub's HTTP library.
        lines = str(error).strip().splitlines() or ["no reason given"]
        reason = f"({type(error).__name__}: {lines[0]})"
        raise ModelError(
            f"{repo_id} is not in the Hugging Face cache and cannot be fetched {reason}"
        ) from error
