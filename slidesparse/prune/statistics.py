"""What calibrated methods need to know of a linear's inputs, summed up token by token."""

from __future__ import annotations

import torch

from slidesparse.errors import CalibrationError

_REMEDY = "use more calibration text or keep the layer"


class InputStatistics:
    """Sums over all calibration tokens x [K] of one linear's inputs.

    Args:
        k: input channels.
        gram: also sum the outer products x x^T, [K, K] float32, which SparseGPT needs.
        device: where the sums live; `update` moves its argument there.
        name: of the linear, for messages.
    """

    def __init__(
        self,
        k: int,
        gram: bool = False,
        device: torch.device | str = "cpu",
        name: str = "the layer",
    ) -> None:
        """Start from no tokens."""
        self.k = k
        self.name = name
        self.tokens = 0
        self._squares = torch.zeros(k, dtype=torch.float32, device=device)
        self._gram = torch.zeros((k, k), dtype=torch.float32, device=device) if gram else None

    def update(self, x: torch.Tensor) -> None:
        """Add the tokens of x [..., K], of any floating dtype.

        Raises:
            CalibrationError: the last dimension of x is not K.
        """
        if x.shape[-1:] != (self.k,):
            raise CalibrationError(
                f"{self.name} takes K={self.k} channels, its input has shape {tuple(x.shape)}"
            )
        rows = x.detach().reshape(-1, self.k).to(self._squares.device, torch.float32)
        self.tokens += rows.shape[0]
        self._squares += rows.square().sum(dim=0)
        if self._gram is not None:
            self._gram.addmm_(rows.t(), rows)

    @property
    def has_gram(self) -> bool:
        """Whether `hessian` is there."""
        return self._gram is not None

    @property
    def norms(self) -> torch.Tensor:
        """||X_j||: the root of each channel's sum of squares, [K] float32.

        Raises:
            CalibrationError: there was no token, or an input was NaN or infinite.
        """
        self._check()
        return self._squares.sqrt()

    @property
    def hessian(self) -> torch.Tensor:
        """X^T X [K, K] float32, the Hessian of the squared output error up to a factor.

        Raises:
            CalibrationError: there was no token, an input was NaN or infinite, or `gram` was off.
        """
        self._check()
        if self._gram is None:
            raise CalibrationError(f"the input statistics of {self.name} hold no Gram matrix")
        return self._gram

    def permuted(self, order: torch.Tensor) -> InputStatistics:
        """The statistics of reordered inputs: new channel i is the old channel order[i]."""
        made = InputStatistics(self.k, device=self._squares.device, name=self.name)
        made.tokens = self.tokens
        made._squares = self._squares[order]
        if self._gram is not None:
            made._gram = self._gram[order][:, order]
        return made

    def _check(self) -> None:
        # Here and not in `update`, where it would make a GPU wait for every sequence.
        if self.tokens == 0:
            raise CalibrationError(f"no calibration token reached {self.name}; {_REMEDY}")
        bad = int((~self._squares.isfinite()).sum())
        if bad:
            raise CalibrationError(
                f"{self.name} got NaN or Inf in {bad} of {self.k} input channels during "
                "calibration; run the model in bfloat16 or float32, or keep the layer"
            )
