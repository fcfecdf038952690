"""What a classifier's head is given and gives, while MMEngine evaluates: data samples have its softmax alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .features import extract_features, unwrapped, vectors

__all__ = ['HeadOutputs']


class HeadOutputs:
    """Reads features and logits of each batch by a forward hook on the head.

    mmpretrain's test loop hands metrics the softmax of the logits, which underflows, and no features.
    """

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.logits: Tensor | None = None
        #: How often the head has run.
        self.calls = 0
        self._handle: Any = None
        #: Loader's config, as text, to its features and labels.
        self._banks: dict[str, tuple[Tensor, Tensor]] = {}

    def bank(self, model: nn.Module, loader: Any, what: str) -> tuple[Tensor, Tensor]:
        """Features and labels of a loader's config; metrics that ask for the same before an evaluation share them.

        Args:
            model: Whose weights are evaluated.
            loader: The config.
            what: Who asks, for the log.
        """
        key = repr(loader)
        if key not in self._banks:
            self._banks[key] = extract_features(model, loader, what=what)
        return self._banks[key]

    def attach(self, model: nn.Module) -> None:
        """Begin to read.

        Args:
            model: A classifier, or a wrapper of one.

        Raises:
            ValueError: If it has no head.
        """
        self.detach()
        head = getattr(unwrapped(model), 'head', None)
        if not isinstance(head, nn.Module):
            raise ValueError(
                f"model={type(unwrapped(model)).__name__} has no head: olor_mm's metrics of features and logits need a "
                'classifier of mmpretrain'
            )
        self._handle = head.register_forward_hook(self._read)

    def detach(self) -> None:
        """Leave the model as it was."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.features = self.logits = None
        self._banks.clear()

    def _read(self, head: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.calls += 1
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise ValueError(f'model.head={type(head).__name__} gives no logits (N, C), which the metrics need')
        self.features, self.logits = vectors(args[0] if args else None).detach(), output.detach()
