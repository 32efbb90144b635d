"""Policy, frozen reference and value head on one frozen trunk.

The trunk runs once, while sampling. Whatever comes later (old and reference log-probabilities, values, every epoch of
training) runs only the top blocks on the kept states. A head that is tied to the input embeddings stays frozen, so
that the embeddings below never change unseen.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from starling_nb.blocks import Top, Trainable
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.shared_prompt import Layout, Tree


@dataclass(frozen=True)
class Batch:
    """Sequences after the trunk, in one row without padding, and where their answers lie.

    ``states`` ``[1, tokens, width]``; ``layout`` says which answers share a prompt; ``places`` ``[answer tokens]`` are
    those in the row that predict each answer token; ``targets`` ``[answer tokens]`` the token itself; ``mask``
    ``[answers, longest answer]``.
    """

    states: Tensor
    layout: Layout
    places: Tensor
    targets: Tensor
    mask: Tensor

    def through(self, top: Top) -> Tensor:
        """What ``top`` makes of the places that predict answer tokens, ``[answer tokens, width]``."""
        return top.at(self.states, self.layout, self.places)

    def unflatten(self, flat: Tensor) -> Tensor:
        """``[answer tokens]`` → ``[answers, longest answer]``, zeros where there is no token."""
        out = flat.new_zeros(self.mask.shape)
        out[self.mask] = flat
        return out


def collate(
    states: Sequence[Tensor],
    prompts: Sequence[int],
    answers: Sequence[Sequence[int]],
    same: Sequence[Hashable] | None = None,
) -> Batch:
    """Put sequences into one row.

    Args:
        states: trunk states, ``[at least prompt + answer - 1 tokens, width]`` each.
        prompts: prompt lengths in tokens.
        answers: answer token ids.
        same: names of the prompts: sequences of one name share the prompt's states, which run once.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, name in enumerate(same or range(len(states))):
        groups.setdefault(name, []).append(row)
    trees, pieces, begin = [], list[Tensor](), 0
    places: dict[int, Tensor] = {}
    for rows in groups.values():
        prompt, lengths = prompts[rows[0]], [len(answers[row]) - 1 for row in rows]
        last = begin + prompt - 1  # predicts the first token of every answer
        pieces.append(states[rows[0]][:prompt])
        begin += prompt
        for row, length in zip(rows, lengths, strict=True):
            pieces.append(states[row][prompt : prompt + length])
            places[row] = torch.tensor([last, *range(begin, begin + length)])
            begin += length
        # An answer alone goes on with its prompt: one causal sequence.
        trees.append(Tree(prompt, tuple(n for n in lengths if n)) if rows[1:] else Tree(prompt + lengths[0], ()))
    sizes = torch.tensor([len(answer) for answer in answers])
    mask = torch.arange(int(sizes.max()))[None, :] < sizes[:, None]
    targets = torch.tensor([token for answer in answers for token in answer])
    where = torch.cat([places[row] for row in range(len(answers))])
    together = torch.cat(pieces)[None]
    return Batch(together, Layout(tuple(trees)), *(index.to(together.device) for index in (where, targets, mask)))


class TokenLogprobs(torch.autograd.Function):
    """Log-probabilities of given tokens under a frozen head, in chunks.

    One number a token has one vector a token as its gradient. That vector is computed on the way forward, while the
    chunk's probabilities are at hand: nothing as large as the vocabulary is kept or computed twice.
    """

    CHUNK = 128  # tokens: their logits stay below the size from which an allocation is a call to the system

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """``[tokens]`` log-probabilities (nats) from hidden ``[tokens, width]`` and head ``[vocabulary, width]``."""
        out, slopes = [], []
        for part, ids in zip(hidden.split(TokenLogprobs.CHUNK), targets.split(TokenLogprobs.CHUNK), strict=True):
            logits = (part.to(weight.dtype) @ weight.T).float()
            normaliser = logits.logsumexp(-1, keepdim=True)
            out.append((logits.gather(-1, ids[:, None]) - normaliser)[:, 0])
            if ctx.needs_input_grad[0]:
                probs = logits.sub_(normaliser).exp_().to(weight.dtype)
                slopes.append(weight[ids].to(hidden.dtype) - (probs @ weight).to(hidden.dtype))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """(one-hot − p) · W, times the gradient of each token's log-probability."""
        return grads[0][:, None] * ctx.saved_tensors[0], None, None


@dataclass(frozen=True)
class Comparison:
    """Policy against reference on the tokens of a batch, ``[answer tokens]`` each, nats.

    ``kl`` is the exact KL(policy ‖ reference) of the next-token distribution, ``entropy`` the policy's.
    """

    logprobs: Tensor
    reference: Tensor
    kl: Tensor
    entropy: Tensor
    values: Tensor


class Hydra(nn.Module):
    """One trunk, two tops (policy trains, reference is frozen) and a critic.

    Args:
        lm: the start model; the blocks above its trunk are copied, its trunk and head are shared.
        trainable: what learns, see :class:`starling_nb.blocks.Trainable`; ``full`` means every block: embeddings, and a
            head that is tied to them, stay as they are.
        value: the critic reads the policy's hidden state (``head``), or that of blocks of its own (``branch``).

    Raises:
        StarlingError: nothing learns, or as :meth:`starling_nb.blocks.Trainable.parse`.
    """

    def __init__(self, lm: LM, trainable: str = "last:4", value: Literal["head", "branch"] = "head") -> None:
        super().__init__()
        model: Any = lm.model
        part = replace(Trainable.parse(trainable, len(model.model.layers)), embeddings=False)
        if part.start == part.stop:
            raise StarlingError(
                f"trainable={trainable!r} leaves a policy nothing to learn: write last:k, or blocks:a-b"
            )
        self.start = part.start
        self.top = Top(model.model, part)
        self.reference = Top(model.model, self.start).requires_grad_(False)
        self.value_top = Top(model.model, self.start) if value == "branch" else None
        width = model.config.hidden_size
        last = nn.Linear(2 * width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.value_head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), last).to(model.device)
        self.register_buffer("head", model.lm_head.weight.detach(), persistent=False)
        # What never changes, the head above all, processes need not send each other before every pass.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._no_split_modules = [type(model.model.layers[0]).__name__]  # FSDP2 shards block by block

    @classmethod
    def between(cls, policy: LM, start: LM, first: int) -> Hydra:
        """Two finished models that share what lies below block ``first``, side by side for :meth:`compare`."""
        layers: Any = start.model.model.layers
        hydra = cls(start, f"blocks:{first}-{len(layers) - 1}")
        hydra.top = Top(policy.model.model, first)
        return hydra

    def learning(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What learns of the policy's blocks, and of the critic."""
        critic = [*self.value_head.parameters(), *(self.value_top.parameters() if self.value_top else ())]
        return [weight for weight in self.top.parameters() if weight.requires_grad], critic

    def own_state(self) -> dict[str, Tensor]:
        """Weights that a checkpoint needs: all but the reference's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("reference.")}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Take the weights of :meth:`own_state`.

        Raises:
            StarlingError: they are another hydra's.
        """
        if state.keys() != self.own_state().keys():
            raise StarlingError("the checkpoint belongs to another choice of trainable or value: delete it, or go back")
        self.load_state_dict(state, strict=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values of the answer tokens, ``[answer tokens]`` each."""
        hidden = batch.through(self.top)
        return TokenLogprobs.apply(hidden.float(), self.head, batch.targets), self._values(batch, hidden)

    def _values(self, batch: Batch, hidden: Tensor) -> Tensor:
        if self.value_top is not None:
            hidden = batch.through(self.value_top)
        values: Tensor = self.value_head(hidden.float())[:, 0].float()
        return values.clone()  # no view: FSDP2 hooks onto what a forward pass returns

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the answer tokens under the reference, ``[answer tokens]``."""
        hidden = batch.through(self.reference)
        logprobs: Tensor = TokenLogprobs.apply(hidden.float(), self.head, batch.targets)
        return logprobs

    @torch.no_grad()
    def compare(self, batch: Batch) -> Comparison:
        """Policy and reference side by side, with the exact KL over the whole vocabulary."""
        ours = batch.through(self.top)
        theirs = batch.through(self.reference)
        head: Any = self.head
        parts = []
        chunks = [x.split(TokenLogprobs.CHUNK) for x in (ours, theirs, batch.targets)]
        for mine, other, ids in zip(*chunks, strict=True):
            p, q = (torch.log_softmax((x.to(head.dtype) @ head.T).float(), -1) for x in (mine, other))
            picked = [x.gather(-1, ids[:, None])[:, 0] for x in (p, q)]
            probs = p.exp()
            parts.append([*picked, torch.linalg.vecdot(probs, q.sub_(p)).neg_(), -torch.linalg.vecdot(probs, p)])
        logprobs, reference, kl, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        return Comparison(logprobs, reference, kl, entropy, self._values(batch, ours))
