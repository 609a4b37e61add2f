"""What one layer's weight W gets, in every kind: pure tensor functions of stored factors.

All give the dense update as delta, so that W + delta answers as the layer with its adapter does.
Convolutions count as matrices of `[out, in * kh * kw]`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate.errors import AdapterError


@dataclass(frozen=True)
class Update(ABC):
    """One layer's update. `needs_weight` kinds are told only by the weight they sit on."""

    kind: ClassVar[str]
    needs_weight: ClassVar[bool] = False

    @property
    @abstractmethod
    def size(self) -> tuple[int | None, int]:
        """Rows and columns of the weight it fits, None where it fits any."""

    @abstractmethod
    def scaled(self, strength: float) -> Update:
        """The same with a delta `strength` times as large."""

    @abstractmethod
    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]: ...

    @property
    def rank(self) -> int:
        """The rank of its factors, 0 in kinds that have none."""
        return 0

    def factors(self) -> dict[str, Tensor]:
        """The tensors that make it, by name."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    @property
    def of_vector(self) -> bool:
        """Whether it changes a vector (a norm's weight, a bias), which no factors can hold."""
        return False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape can carry it; vectors take whole differences alone."""
        out, inputs = self.size
        return len(shape) > 1 and out in (None, shape[0]) and inputs == math.prod(shape[1:])

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The dense update in float32, shaped as `weight`, the base's; without it as a matrix
        where the factors do not tell a convolution's kernel.

        Raises: AdapterError without a weight where the kind needs one.
        """
        if weight is None and self.needs_weight:
            raise AdapterError(f"what {self.kind} adds depends on the base's weight: give that too")
        delta = self._delta(None if weight is None else weight.detach().float().flatten(1).cpu())
        return delta if weight is None else delta.view(weight.shape)

    def spectrum(self, weight: Tensor | None = None) -> Float[Tensor, " k"]:
        """The update's singular values, largest first; by the dense update where the kind has no
        shorter way."""
        values: Tensor = torch.linalg.svdvals(self.delta(weight).flatten(1).double())
        return values.float()


@dataclass(frozen=True)
class LayerUpdate(Update):
    """LoRA: delta = up @ down * alpha / r.

    down is `[r, in]` (`[r, in, kh, kw]` for a convolution), up `[out, r]` (`[out, r, 1, 1]`).
    """

    kind: ClassVar[str] = "lora"
    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim != self.down.ndim:
            raise AdapterError(
                f"factors of shapes {tuple(self.down.shape)} and {tuple(self.up.shape)}: "
                "expected two matrices or two convolution kernels"
            )
        if self.up.shape[1] != self.down.shape[0]:
            raise AdapterError(
                f"factors of shapes {tuple(self.down.shape)} and {tuple(self.up.shape)} do not "
                "share a rank"
            )

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def size(self) -> tuple[int | None, int]:
        return self.up.shape[0], math.prod(self.down.shape[1:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape == (self.up.shape[0], *self.down.shape[1:])

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The dense update, shaped as the layer's weight."""
        return super().delta(weight).view(self.up.shape[0], *self.down.shape[1:])

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        return self.up.flatten(1).float() @ self.down.flatten(1).float() * self.scale

    def spectrum(self, weight: Tensor | None = None) -> Float[Tensor, " k"]:
        """The update's singular values, largest first, without forming it.

        With up = Q1 R1 and down' = Q2 R2, they are those of R1 R2', an r x r matrix.
        """
        left = torch.linalg.qr(self.up.flatten(1).double(), mode="r").R
        right = torch.linalg.qr(self.down.flatten(1).double().T, mode="r").R
        values: Tensor = torch.linalg.svdvals(left @ right.T) * abs(self.scale)
        return values.float()

    def scaled(self, strength: float) -> LayerUpdate:
        return replace(self, alpha=self.alpha * strength)


@dataclass(frozen=True)
class DoraUpdate(LayerUpdate):
    """DoRA: W + delta = m V / |V|, V = W + up @ down * alpha / r, lengths of rows.

    Source: Liu et al., DoRA, 2024, arXiv 2402.09353, equation 5; rows as in PEFT.
    """

    kind: ClassVar[str] = "dora"
    needs_weight: ClassVar[bool] = True
    magnitude: Float[Tensor, " out"]
    strength: float = 1.0

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        assert weight is not None
        turned = weight + super()._delta(weight)
        length = turned.norm(dim=1, keepdim=True)
        return (self.magnitude.float()[:, None] * turned / length - weight) * self.strength

    def spectrum(self, weight: Tensor | None = None) -> Float[Tensor, " k"]:
        return Update.spectrum(self, weight)

    def scaled(self, strength: float) -> DoraUpdate:
        return replace(self, strength=self.strength * strength)


@dataclass(frozen=True)
class LohaUpdate(Update):
    """LoHa: delta = (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / r, entry by entry.

    Source: Hyeon-Woo et al., FedPara, 2021, arXiv 2108.06098; LyCORIS, arXiv 2309.14859.
    """

    kind: ClassVar[str] = "loha"
    w1_a: Float[Tensor, "out r"]
    w1_b: Float[Tensor, "r in"]
    w2_a: Float[Tensor, "out r"]
    w2_b: Float[Tensor, "r in"]
    alpha: float

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def size(self) -> tuple[int | None, int]:
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        first = self.w1_a.float() @ self.w1_b.float()
        return first * (self.w2_a.float() @ self.w2_b.float()) * (self.alpha / self.rank)

    def scaled(self, strength: float) -> LohaUpdate:
        return replace(self, alpha=self.alpha * strength)


@dataclass(frozen=True)
class LokrUpdate(Update):
    """LoKr: delta = kron(w1, w2) * alpha / r, each whole or a product of two; scale 1 where both
    are whole, as LyCORIS has it.

    Source: Yeh et al., Navigating Text-to-Image Customization, 2023, arXiv 2309.14859.
    """

    kind: ClassVar[str] = "lokr"
    alpha: float
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None

    @property
    def rank(self) -> int:
        inner = self.w2_b if self.w2_b is not None else self.w1_b
        return 0 if inner is None else inner.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def half_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of both halves, of which none is multiplied out."""
        first = _whole_size(self.w1, self.w1_a, self.w1_b)
        return first, _whole_size(self.w2, self.w2_a, self.w2_b)

    @property
    def size(self) -> tuple[int | None, int]:
        (o, i), (p, j) = self.half_sizes
        return o * p, i * j

    def _halves(
        self, dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "o i"], Float[Tensor, "p j"]]:
        first = _whole(self.w1, self.w1_a, self.w1_b, dtype)
        return first, _whole(self.w2, self.w2_a, self.w2_b, dtype)

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        return torch.kron(*self._halves()) * self.scale

    def spectrum(self, weight: Tensor | None = None) -> Float[Tensor, " k"]:
        """All products of the two halves' singular values, largest first."""
        small, large = map(torch.linalg.svdvals, self._halves(torch.float64))
        values: Tensor = torch.outer(small, large).flatten() * abs(self.scale)
        return values.sort(descending=True).values.float()

    def scaled(self, strength: float) -> LokrUpdate:
        if self.w1 is not None:
            return replace(self, w1=self.w1 * strength)
        assert self.w1_a is not None
        return replace(self, w1_a=self.w1_a * strength)


def _whole(
    full: Tensor | None, left: Tensor | None, right: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if full is not None:
        return full.flatten(1).to(dtype)
    assert left is not None
    assert right is not None
    return left.to(dtype) @ right.flatten(1).to(dtype)


def _whole_size(full: Tensor | None, left: Tensor | None, right: Tensor | None) -> tuple[int, int]:
    """Rows and columns of what `_whole` gives."""
    rows, columns = (left, right) if full is None else (full, full)
    assert rows is not None
    assert columns is not None
    return rows.shape[0], math.prod(columns.shape[1:])


@dataclass(frozen=True)
class OftUpdate(Update):
    """OFT: W + delta = W R', R block-diagonal; each block is the Cayley transform of a skew matrix
    whose upper triangle is stored row by row.

    The inputs are turned, as in PEFT; LyCORIS turns the outputs.
    Source: Qiu et al., Controlling Text-to-Image Diffusion by OFT, 2023, arXiv 2306.07280.
    """

    kind: ClassVar[str] = "oft"
    needs_weight: ClassVar[bool] = True
    blocks: Float[Tensor, "k n"]
    strength: float = 1.0

    @property
    def block_size(self) -> int:
        """b of the b (b - 1) / 2 numbers above a b x b matrix's diagonal."""
        return (1 + math.isqrt(1 + 8 * self.blocks.shape[1])) // 2

    @property
    def size(self) -> tuple[int | None, int]:
        return None, self.blocks.shape[0] * self.block_size

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        assert weight is not None
        b = self.block_size
        skew = torch.zeros(len(self.blocks), b, b)
        rows, columns = torch.triu_indices(b, b, 1)
        skew[:, rows, columns] = self.blocks.float()
        turn = torch.block_diag(*_cayley(skew - skew.mT))
        return (weight @ turn.T - weight) * self.strength

    def scaled(self, strength: float) -> OftUpdate:
        return replace(self, strength=self.strength * strength)


def _cayley(skew: Float[Tensor, "... b b"]) -> Float[Tensor, "... b b"]:
    """(I - Q) (I + Q)^-1: a rotation for every skew Q."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype)
    turned: Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
    return turned


@dataclass(frozen=True)
class BoftUpdate(Update):
    """BOFT: W + delta = s W R', R a product of block-diagonal rotations under butterfly
    permutations, s a scale of each output.

    Source: Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization,
    2023, arXiv 2311.06243.
    """

    kind: ClassVar[str] = "boft"
    needs_weight: ClassVar[bool] = True
    rotations: Float[Tensor, "m k b b"]
    scale: Float[Tensor, " out"]
    strength: float = 1.0

    @property
    def size(self) -> tuple[int | None, int]:
        return len(self.scale), self.rotations.shape[1] * self.rotations.shape[2]

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        assert weight is not None
        turn = torch.eye(self.rotations.shape[1] * self.rotations.shape[2])
        for i, free in enumerate(self.rotations.float()):
            blocks = torch.block_diag(*_cayley((free - free.mT) / 2))
            order = _butterfly(len(free), free.shape[1], i)
            turn = blocks[order][:, order] @ turn
        return (self.scale.float()[:, None] * (weight @ turn.T) - weight) * self.strength

    def scaled(self, strength: float) -> BoftUpdate:
        return replace(self, strength=self.strength * strength)


def _butterfly(count: int, block: int, factor: int) -> Int[Tensor, " n"]:
    """Which input stands where for the factor-th rotation: half blocks 2^factor apart meet."""
    places = torch.arange(count * block)
    return places.view(-1, 2**factor, 2, block // 2).transpose(1, 2).reshape(-1)


@dataclass(frozen=True)
class SparseUpdate(Update):
    """SHiRA: single entries of delta, in PEFT's order of rows.

    Source: Bhardwaj et al., Sparse High Rank Adapters, 2024, arXiv 2406.13175.
    """

    kind: ClassVar[str] = "sparse"
    values: Float[Tensor, " n"]
    indices: Int[Tensor, "2 n"]
    shape: Int[Tensor, " 2"]

    @property
    def size(self) -> tuple[int | None, int]:
        return int(self.shape[0]), int(self.shape[1])

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        delta = torch.zeros(int(self.shape[0]), int(self.shape[1]))
        delta[self.indices[0].long(), self.indices[1].long()] = self.values.float()
        return delta

    def scaled(self, strength: float) -> SparseUpdate:
        return replace(self, values=self.values * strength)


@dataclass(frozen=True)
class FullUpdate(Update):
    """The whole difference of one tensor: a weight of any shape, a norm's, or a bias."""

    kind: ClassVar[str] = "full"
    difference: Tensor

    @property
    def size(self) -> tuple[int | None, int]:
        return len(self.difference), self.difference[0].numel()

    @property
    def of_vector(self) -> bool:
        return self.difference.ndim == 1

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape == tuple(self.difference.shape)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The dense update, shaped as the tensor it changes."""
        return self.difference.float()

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        return self.difference.float().reshape(len(self.difference), -1)

    def spectrum(self, weight: Tensor | None = None) -> Float[Tensor, " k"]:
        """The singular values as a matrix, largest first; of a vector its length."""
        values: Tensor = torch.linalg.svdvals(self._delta(None).double())
        return values.float()

    def scaled(self, strength: float) -> FullUpdate:
        return replace(self, difference=self.difference * strength)


@dataclass(frozen=True)
class DecomposedUpdate(Update):
    """Learnt lengths over any update: W + delta = m V / |V|, V = W + the update's own delta.

    magnitude: `[out, 1...]`, lengths of rows, or `[1, in...]`, of columns (of a convolution: of all
    that reads one channel). A LoRA with lengths of rows is a `DoraUpdate`.
    Source: LyCORIS, `modules/locon.py`, `apply_weight_decompose`.
    """

    kind: ClassVar[str] = "decomposed"
    needs_weight: ClassVar[bool] = True
    magnitude: Float[Tensor, "a ..."]
    inner: Update
    strength: float = 1.0

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def size(self) -> tuple[int | None, int]:
        return self.inner.size

    @property
    def alpha(self) -> float:
        """Of the update within; kinds without one have none here either."""
        return float(getattr(self.inner, "alpha"))  # noqa: B009

    @property
    def of_rows(self) -> bool:
        return self.magnitude.shape[0] == self.magnitude.numel()

    def factors(self) -> dict[str, Tensor]:
        return {"magnitude": self.magnitude, **self.inner.factors()}

    def fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        lengths = shape[0] if self.of_rows else shape[1]
        return self.inner.fits(shape) and self.magnitude.numel() == lengths

    def delta(self, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            return super().delta(weight)
        own = weight.detach().float().cpu()
        turned = own + self.inner.delta(weight)
        axis = 0 if self.of_rows else 1
        others = [i for i in range(own.ndim) if i != axis]
        length = turned.square().sum(others, keepdim=True).sqrt()
        magnitude = self.magnitude.float().view(length.shape)
        return (magnitude * turned / length - own) * self.strength

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        raise AssertionError("its lengths are of the weight in its own shape: see delta")

    def scaled(self, strength: float) -> DecomposedUpdate:
        return replace(self, strength=self.strength * strength)


@dataclass(frozen=True)
class TurnedUpdate(Update):
    """OFT and BOFT as LyCORIS has them, of the outputs: W + delta = s R' W, each block of R being
    (I + Q) (I - Q)^-1 with Q = B - B'; in BOFT a product of such turns under butterfly
    permutations, each of them R and not R'.

    blocks: B, `[k, b, b]`, or `[m, k, b, b]` for m factors. constraint: the norm of Q is at most
    that times the number of outputs; 0 for none. rescale: s of each output, `[out, 1...]`.
    Source: LyCORIS, `modules/diag_oft.py` and `modules/boft.py`, `make_weight`.
    """

    kind: ClassVar[str] = "turned"
    needs_weight: ClassVar[bool] = True
    blocks: Float[Tensor, "... k b b"]
    constraint: float = 0.0
    rescale: Float[Tensor, "out ..."] | None = None
    strength: float = 1.0

    @property
    def size(self) -> tuple[int | None, int]:
        return self.blocks.shape[-3] * self.blocks.shape[-1], 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and shape[0] == self.size[0]

    def _delta(self, weight: Float[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
        assert weight is not None
        skew = self.blocks.float()
        skew = skew - skew.mT
        most = self.constraint * len(weight)
        if most > 0:
            skew = skew * min(1.0, most / (float(skew.norm()) + 1e-8))
        turns = _cayley(-skew)
        turned = weight
        if turns.ndim == 3:
            turned = torch.block_diag(*turns).T @ weight
        else:
            for i, blocks in enumerate(turns):
                # Outputs 2^i half blocks apart stand side by side; PEFT's inputs (`_butterfly`)
                # stand by half blocks.
                apart = 2**i * blocks.shape[-1] // 2
                order = torch.arange(len(weight)).view(-1, 2, apart).mT.reshape(-1)
                turned = (torch.block_diag(*blocks) @ turned[order])[order.argsort()]
        if self.rescale is not None:
            turned = self.rescale.float().view(-1, 1) * turned
        return (turned - weight) * self.strength

    def scaled(self, strength: float) -> TurnedUpdate:
        return replace(self, strength=self.strength * strength)


UPDATES: dict[str, type[Update]] = {
    "lora": LayerUpdate,
    "dora": DoraUpdate,
    "loha": LohaUpdate,
    "lokr": LokrUpdate,
    "oft": OftUpdate,
    "boft": BoftUpdate,
    "sparse": SparseUpdate,
}


def numbers_of(update: Update) -> Iterator[Tensor]:
    """The factors that are learnt."""
    return (t for t in update.factors().values() if t.is_floating_point())
