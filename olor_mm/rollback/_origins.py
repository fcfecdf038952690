"""The pre-trained files that theta_0 came from: what of it is in them bit by bit, and what checkpoints say of them."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ._mapping import Reader, is_mappable, read_weights, tensors_of
from ._references import Candidates, Reference, digest_of, resolved

__all__ = ['UNUSABLE', 'Origins', 'first_line', 'size_of']

_log = logging.getLogger(__name__)

#: What a checkpoint of a run has, and published weights have not.
_OF_A_RUN = {'optimizer', 'optimizer_state_dict', 'message_hub', 'param_schedulers'}
#: What a file that cannot serve may raise.
UNUSABLE = (OSError, RuntimeError, ValueError, ImportError)


class Origins:
    """The files of one rollback.

    Args:
        names: Parameter to name, for messages.

    Attributes:
        files: Files that may hold theta_0; whether they do is found out by their values.
        read: What reads such a file.
        num_read: File to the number of tensors that were last read from it because a checkpoint names it.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        self.files: list[str] = []
        self.read: Reader = read_weights
        self._names = names
        self._references: dict[Tensor, Reference | None] = {}
        self._referred: dict[str, str] = {}
        self._said: set[str] = set()
        self.num_read: dict[str, int] = {}

    def forget(self) -> None:
        """theta_0 is to be taken anew."""
        self._references.clear()
        self._referred.clear()

    def name(self, param: Tensor) -> str:
        """What a parameter is called."""
        return self._names.get(param, f'a tensor of shape {tuple(param.shape)}')

    def say(self, level: int, text: str) -> None:
        """To the log, each text once."""
        if text not in self._said:
            self._said.add(text)
            _log.log(level, text)

    def references(self, anchors: Mapping[Tensor, Tensor]) -> dict[Tensor, Reference]:
        """Where the values of these are, for those that are in a pre-trained file bit by bit.

        Args:
            anchors: Parameter to theta_0 as it is kept.
        """
        unknown = [param for param in anchors if param not in self._references]
        for path in self.files if unknown else ():
            found = self._refer(path, {param: anchors[param] for param in unknown})
            self._references.update(found)
            unknown = [param for param in unknown if param not in found]
        self._references.update(dict.fromkeys(unknown))
        found = {param: reference for param in anchors if (reference := self._references[param]) is not None}
        gone = {reference.file for reference in set(found.values()) if self._digest(reference.file) != reference.sha256}
        for file in sorted(gone):
            text = (
                f'{file} is missing or has changed: from now on checkpoints hold the values of theta_0 that were in it'
            )
            self.say(logging.WARNING, text)
        found = {param: reference for param, reference in found.items() if reference.file not in gone}
        self._referred = {reference.file: reference.sha256 for reference in found.values()}
        return found

    def _refer(self, path: str, anchors: Mapping[Tensor, Tensor]) -> dict[Tensor, Reference]:
        try:
            # What a link points to, for the link may point elsewhere later.
            path = str(Path(path).resolve())
            digest, content = digest_of(path), self.read(path, is_mappable(path))
            if isinstance(content, Mapping) and not _OF_A_RUN.isdisjoint(content):
                raise ValueError('it is the checkpoint of a run, which that run may write over or remove')
            candidates = Candidates(tensors_of(content))
        except UNUSABLE as error:
            self.say(logging.WARNING, f'checkpoints do not refer to {path} for theta_0: {first_line(error)}')
            return {}
        found = {}
        for param, value in anchors.items():
            key = candidates.find(value.cpu().to(param.dtype), self.name(param), False)
            if key is not None:
                found[param] = Reference(path, digest, key, str(param.dtype).removeprefix('torch.'))
        self.say(
            logging.INFO,
            f'checkpoints refer to {path} (SHA-256 {digest}) for {len(found)} of {len(anchors)} tensors of theta_0',
        )
        return found

    @staticmethod
    def _digest(path: str) -> str | None:
        try:
            return digest_of(path)
        except OSError:
            return None

    def resolve(self, references: Mapping[Tensor, Reference]) -> dict[Tensor, Tensor]:
        """theta_0 of the parameters that a checkpoint has references for.

        Raises:
            AnchorFileError: If a file is missing or another one.
        """
        values = {}
        self.num_read = {}
        for param, value, reference in resolved(references, self.read, self.files, self.name):
            values[param] = value
            self._references[param] = reference
            self.num_read[reference.file] = self.num_read.get(reference.file, 0) + 1
        for file, number in self.num_read.items():
            self.files += [file] if file not in self.files else []
            self.say(logging.INFO, f'theta_0: {number} tensors are read from {file}, which the checkpoint names')
        return values

    def digests(self) -> dict[str, str]:
        """File to SHA-256, of those that the last state dict refers to."""
        return dict(self._referred)


def size_of(values: Iterable[Tensor]) -> str:
    """In words."""
    return f'{sum(value.numel() * value.element_size() for value in values) / 2**20:.1f} MiB'


def first_line(error: Exception) -> str:
    """Of its message."""
    return str(error).split('\n')[0]
