"""Puts an exported folder on the Hugging Face hub, in one commit; refuses before anything is trained or written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from autopeft.errors import HubError, SpecError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, RepoUrl


class HubApi(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def whoami(self) -> dict[str, object]: ...

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> "RepoUrl": ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> "CommitInfo": ...


def hub_api() -> HubApi:
    """The hub as the environment names it (`HF_ENDPOINT`, `HF_TOKEN`, the token of `hf auth login`)."""
    from huggingface_hub import HfApi

    return cast(HubApi, HfApi())


def check_hub(repository: str, api: HubApi) -> None:
    """See that `repository` can be a name and that somebody is logged in; changes nothing.

    Raises:
        SpecError: It is no name of a repository, or nobody is logged in.
        HubError: The hub does not answer.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise SpecError(f"--push-to-hub: got {repository!r}: {_first_line(error)}", hint="write owner/name") from None
    with _translated("the hub does not answer"):
        api.whoami()


def push(folder: Path, repository: str, api: HubApi, *, message: str) -> str:
    """Upload `folder` as one commit; the address of the repository.

    Raises:
        SpecError: Nobody is logged in, or not with the right to write there.
        HubError: The hub does not take it; `folder` stays, and the repository has all of it or nothing.
    """
    with _translated(f"the folder is in {folder}, but the hub did not take it"):
        address = str(api.create_repo(repository, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message)
    return address


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Every way the hub can refuse, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    # Its own error is one of the HTTP library below, whose name changes between versions.
    transport = cast("tuple[type[Exception], ...]", (OfflineModeIsEnabled, *HfHubHTTPError.__bases__))
    try:
        yield
    except LocalTokenNotFoundError:
        raise SpecError("--push-to-hub: nobody is logged in", hint="run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise SpecError(
                f"--push-to-hub: the hub refuses this login (status {status})",
                hint="run `hf auth login` with a token that may write there",
            ) from None
        raise HubError(f"--push-to-hub: {what}: {_first_line(error)}", hint="try again later") from None
    except transport as error:
        raise HubError(
            f"--push-to-hub: {what}: {_first_line(error)}", hint="check the network and HF_HUB_OFFLINE"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:199] + "…"
