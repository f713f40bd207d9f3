"""Models of the Hugging Face Hub, through huggingface_hub's own cache, token and revisions (extra `hub`)."""

import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vit_jax.errors import UserError, first_line
from vit_jax.extras import need
from vit_jax.fields import fail
from vit_jax.weights.formats import hf_folder, safetensors

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")  # org/name, org/name@revision


def download(ref: str, absent: str) -> Path:
    """The weights of `org/name` or `org/name@revision` in the cache, beside what is read with them.

    Of the rest of a repository nothing is downloaded. Raises UserError, which begins with `absent`, what
    `ref` is not on this machine.
    """
    match = NAME.fullmatch(ref)
    assert match is not None
    what = f"{absent}; as a name of the Hugging Face Hub it"
    hub, *_ = (need(f"huggingface_hub{part}", "hub", what) for part in ("", ".errors", ".constants"))
    named = Repository(hub, absent, match[1], match[2])
    first = named.bring(hf_folder.CONFIG) or named.bring(hf_folder.OPEN_CLIP)
    if first is None:
        named.refuse(f"{named.name} on the Hub has neither {hf_folder.CONFIG} nor {hf_folder.OPEN_CLIP}")
    folder = first.parent
    at_commit = named._replace(revision=folder.name)  # all files of one commit, whatever is pushed meanwhile
    if first.name == hf_folder.CONFIG and not hf_folder.is_timms(folder):
        at_commit.bring(hf_folder.PREPROCESSOR)
    cached_first = sorted(hf_folder.ALL_WEIGHTS, key=lambda name: not (folder / name).exists())
    weights = next(filter(None, map(at_commit.bring, cached_first)), None)
    if weights is None:
        pickled = any(name.endswith(hf_folder.PICKLES) for name in at_commit.files())
        why = f"only {hf_folder.PICKLED}" if pickled else f"no {hf_folder.WEIGHTS}"
        fail(f"{ref} on the Hub has {why}")
    beside = [hf_folder.OPEN_CLIP] if weights.name in hf_folder.OPEN_CLIP_WEIGHTS else []
    if weights.name == hf_folder.INDEX:
        beside = sorted(set(safetensors.shards_of(weights).values()))
    for name in beside:
        if at_commit.bring(name) is None:
            fail(
                f"{ref} on the Hub has {weights.name}, but no {name}, which it needs: choose another revision"
            )
    return weights


class Repository(NamedTuple):
    """One model of the Hub, at a branch, a tag or a commit."""

    hub: Any  # the package huggingface_hub
    absent: str  # what its name is not on this machine
    name: str
    revision: str | None

    def bring(self, file: str) -> Path | None:
        """The file in the cache, downloaded if need be; None if the Hub has none. Raises UserError."""
        errors = self.hub.errors
        try:
            return Path(self.hub.hf_hub_download(self.name, file, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:  # neither cached nor to be had
            cached = self.hub.try_to_load_from_cache(self.name, file, revision=self.revision)
            if cached is not None:  # a note that the Hub has no such file
                return None
            why = first_line(error.__cause__ or error)
            self.refuse(f"{file} of {self.name} is not in the cache, nor can the Hub be asked ({why})", error)
        except errors.RevisionNotFoundError as error:
            self.refuse(f"{self.name} on the Hub has no revision {self.revision}", error)
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            page = f"{self.hub.constants.ENDPOINT}/{self.name}"
            what = f"{self.name} on the Hub is gated: agree to its terms at {page}"
            self.refuse(f"{what} and log in with `hf auth login` or HF_TOKEN", error)
        except errors.RepositoryNotFoundError as error:
            self.refuse("the Hub has none of this name, or only for others than the owner of HF_TOKEN", error)
        except errors.HFValidationError as error:
            self.refuse("it is no name of the Hub either", error)
        except (errors.HTTPError, OSError) as error:
            self.refuse(f"{file} of {self.name} could not be read from the Hub ({first_line(error)})", error)

    def files(self) -> list[str]:
        """The names of all files. Raises UserError."""
        try:
            return self.hub.HfApi().list_repo_files(self.name, revision=self.revision)
        except (self.hub.errors.HTTPError, OSError) as error:
            self.refuse(
                f"the files of {self.name} on the Hub could not be listed ({first_line(error)})", error
            )

    def refuse(self, why: str, error: BaseException | None = None) -> NoReturn:
        """Raise UserError, which says what is not on this machine and what is wrong with the Hub's."""
        raise UserError(f"{self.absent}, and {why}") from error
