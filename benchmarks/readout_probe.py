"""Where in the network is an answer's quality best read? A linear K-wise probe on every fourth block.

    python -m benchmarks.readout_probe

For each block and two readouts (last token, mean over the answer) a linear score is fitted to the training rows of
``nectar_mini`` with the K-wise loss and read on the validation rows. The result is written to
``benchmarks/results/readout_probe.json``. About four minutes on two cores.
"""

from __future__ import annotations

import platform

import numpy as np
import torch

from starling_nb import files, losses, models
from starling_nb.blocks import run_blocks
from starling_nb.progress import track
from starling_nb.reward import comparisons, metrics
from starling_nb.reward.packing import pack

READOUTS = ("last_token", "mean")
RIDGE = 0.1


def states(lm: models.LM, items: list[comparisons.Comparison]) -> torch.Tensor:
    """``[comparisons, blocks, readouts, answers, width]`` hidden states after every block."""
    decoder = lm.model.model
    rows = []
    with torch.inference_mode():
        for item in track(items, "states"):
            one = pack(lm.chat, item.messages, item.answers)
            hidden, mask, found = decoder.embed_tokens(one.ids[None]), one.mask(), []
            for block in range(len(decoder.layers)):
                hidden = run_blocks(decoder, hidden, one.positions[None], mask, block, block + 1)
                found.append(torch.stack([one.readout(kind) @ hidden[0].float() for kind in READOUTS]))
            rows.append(torch.stack(found))
    return torch.stack(rows)


def probe(train: torch.Tensor, ranks: torch.Tensor, test: torch.Tensor) -> list[list[float]]:
    """Scores of the test answers under the best linear K-wise score of the training answers."""
    mean, spread = train.flatten(0, 1).mean(0), train.flatten(0, 1).std(0) + 1e-6
    train, test = (train - mean) / spread, (test - mean) / spread
    weights = torch.zeros(train.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = losses.k_wise(train @ weights, ranks=ranks) + RIDGE * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scores: list[list[float]] = (test @ weights).detach().tolist()
    return scores


def main() -> None:
    """Probe and write the result."""
    lm = models.load()
    splits = comparisons.by_split(comparisons.load(files.DATA / "nectar_mini.parquet"))
    train, validation = splits["train"], splits["validation"]
    seen, unseen = states(lm, train), states(lm, validation)
    ranks = torch.tensor([item.ranks for item in train])
    table = []
    for block in range(3, seen.shape[1], 4):
        for place, readout in enumerate(READOUTS):
            scores = probe(seen[:, block, place], ranks, unseen[:, block, place])
            found = metrics.evaluate(validation, scores)["pairwise_accuracy"]
            table.append({"blocks": block + 1, "readout": readout, **found.as_dict()})
            print(f"{block + 1:3} blocks, {readout:10} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
    result = {
        "what": "validation pairwise accuracy of a linear probe",
        "machine": platform.processor() or platform.machine(),
        "prompts": [len(train), len(validation)],
        "longest_answer": float(np.mean(metrics.pairs(validation, [metrics.longest(c) for c in validation]).right)),
        "probes": table,
    }
    files.write_json(files.ROOT / "benchmarks" / "results" / "readout_probe.json", result)


if __name__ == "__main__":
    main()
