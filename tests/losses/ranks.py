"""What several processes must agree on; `test_distributed.py` runs this file once for each number of ranks.

`python ranks.py RANKS FOLDER` forks the ranks after torch is imported, so the import is paid for once, and writes
`FOLDER/CHECK` for each check that all of them passed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first collective under a dispatch mode would import it, in every rank
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent / "ops"))

from problems import error, make, to_double  # noqa: E402

from contrastive_i2v.losses import (  # noqa: E402
    MemoryBank,
    cached_backward,
    gather_bank,
    sharded_contrastive_diffusion_loss,
)
from contrastive_i2v.ops import contrastive_diffusion_loss  # noqa: E402
from contrastive_i2v.ops import sharded as sharded_op  # noqa: E402

LATENT = (3, 5, 7)
D = 3 * 5 * 7


class Wire(TorchDispatchMode):
    """Bytes that a rank sends in the ring algorithms, counted where every collective passes: at the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            ranks, name = dist.get_world_size(), func.name().removeprefix("c10d::")
            payload, factor = {
                "_allgather_base_": (args[0], (ranks - 1) / ranks),
                "allreduce_": (args[0][0] if isinstance(args[0], list) else args[0], 2 * (ranks - 1) / ranks),
                "_reduce_scatter_base_": (args[1], (ranks - 1) / ranks),
            }[name]
            self.sent += payload.numel() * payload.element_size() * factor
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def gather_bytes(ranks: int, rows: int, elements: int, banks: int = 1, itemsize: int = 2) -> float:
    """What a rank sends to gather banks of `rows` on all ranks together, with one set of groups."""
    return (ranks - 1) / ranks * rows * (banks * elements * itemsize + 8)


def sharded_bytes(ranks: int, queries: int, elements: int, banks: int, itemsize: int) -> float:
    """What a rank sends to score `queries` of all ranks together against sharded banks, without groups."""
    latents = 2 * queries * elements * itemsize
    statistics = banks * (8 * queries + 2 * 4 * (3 * queries + elements))
    return (ranks - 1) / ranks * (latents + statistics) + (ranks - 1) * 8 * (4 + banks)


def spread(arguments: dict[str, Any], sizes: list[int], rank: int) -> dict[str, Any]:
    """The rows of one rank of everything that has a row for each query."""
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    names = {"prediction", "noisy", "target", "c_skip", "c_out", "mse_weights", "contrastive_weights", "query_groups"}
    mine = {name: value[rows] if name in names else value for name, value in arguments.items()}
    mine["positives"] = [positives[rows] for positives in arguments["positives"]]
    return mine


def mean_gradient(local: Tensor, sizes: list[int], rank: int, scale: float = 1.0) -> Tensor:
    """What averaging over the ranks makes of each query's gradient: zero-padded to all queries and all-reduced."""
    everyones = local.new_zeros(sum(sizes), *local.shape[1:])
    everyones[sum(sizes[:rank]) : sum(sizes[: rank + 1])] = local * scale / len(sizes)
    dist.all_reduce(everyones)
    return everyones


def run(loss: Callable[..., Any], arguments: dict[str, Any], **more: Any) -> tuple[Any, Tensor]:
    prediction = arguments["prediction"].detach().clone().requires_grad_()
    out = loss(**{**arguments, "prediction": prediction}, **more)
    (gradient,) = torch.autograd.grad(out.loss, prediction)
    return out, gradient


def close(value: Tensor, truth: Tensor, bar: float) -> None:
    assert error(value, truth) <= bar, f"off by {error(value, truth):.2e}, allowed {bar:.0e}"


def check_gathered_bank(rank: int, ranks: int) -> None:
    """One bank, rounded once, the same bits everywhere, in rank order; also with ragged batches."""
    for sizes in ([4] * ranks, [3 + r % 2 for r in range(ranks)]):
        generator = torch.Generator().manual_seed(1)
        everyones = torch.randn(sum(sizes), *LATENT, generator=generator)
        groups = torch.randint(5, (sum(sizes),), generator=generator)
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for known in (None, sizes):
            with Wire() as wire:
                out = gather_bank(everyones[rows], groups[rows], sizes=known)
            assert torch.equal(out.latents, everyones.bfloat16()) and torch.equal(out.groups, groups)
            assert out.positives.tolist() == list(range(rows.start, rows.stop))
            assert out.loss_scale == ranks * sizes[rank] / sum(sizes)
            expected = gather_bytes(ranks, max(sizes) * ranks, D) + (0 if known else (ranks - 1) * 3 * 8)
            assert round(wire.sent, 3) == round(expected, 3), (wire.sent, expected)
        exact = gather_bank(everyones[rows], dtype=None)
        assert torch.equal(exact.latents, everyones) and exact.groups is None


def check_gathered_loss(rank: int, ranks: int) -> None:
    """Loss and gradient of the ranks, averaged, are one process's on the concatenated, rounded bank; the backward
    pass sends nothing."""
    for dtype, bar in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        for sizes in ([3] * ranks, [2 + r % 2 for r in range(ranks)]):
            whole = make(sum(sizes), [sum(sizes)] * 2, LATENT, dtype=dtype, options=True)
            whole["positives"] = [torch.arange(sum(sizes))] * 2
            whole["bank_groups"] = [whole["query_groups"]] * 2
            rounded = [bank.bfloat16() for bank in whole["banks"]]
            truth, gradient = run(contrastive_diffusion_loss, {**whole, "banks": rounded})

            mine = spread(whole, sizes, rank)
            rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            first = gather_bank(whole["banks"][0][rows], whole["query_groups"][rows])
            second = gather_bank(whole["banks"][1][rows])
            mine |= {"banks": [first.latents, second.latents], "positives": [first.positives] * 2}
            mine |= {"bank_groups": [first.groups] * 2}
            prediction = mine["prediction"].clone().requires_grad_()
            out = contrastive_diffusion_loss(**{**mine, "prediction": prediction})
            with Wire() as wire:
                out.loss.backward()
            assert wire.calls == []

            same = {**mine, "banks": rounded, "bank_groups": [whole["query_groups"]] * 2}
            assert torch.equal(run(contrastive_diffusion_loss, same)[1], prediction.grad)  # bit by bit
            close(mean_gradient(prediction.grad, sizes, rank, first.loss_scale), gradient, bar)
            mean = out.loss.detach() * first.loss_scale / ranks
            dist.all_reduce(mean)
            close(mean, truth.loss, bar)


def check_sharded_loss(rank: int, ranks: int) -> None:
    """The op on the concatenated bank, whatever shard a positive is in; small strips, ragged queries and shards."""
    shards = [[4 + r for r in range(ranks)], [7 - r for r in range(ranks)]]
    for normalize in (False, True):
        for sizes in ([5] * ranks, [3 + r % 2 for r in range(ranks)]):
            for options in (False, True):
                whole = make(sum(sizes), [sum(s) for s in shards], LATENT, dtype=torch.float64, options=options)
                whole["normalize"] = normalize
                whole["temperature"] = 0.1 if normalize else 3.0
                mine = spread(whole, sizes, rank)
                truth, gradient = run(contrastive_diffusion_loss, mine, backend="reference")
                parts = [bank.split(s)[rank] for bank, s in zip(whole["banks"], shards, strict=True)]
                local = {**mine, "banks": parts}
                if options:
                    local["bank_groups"] = [
                        groups.split(s)[rank] for groups, s in zip(whole["bank_groups"], shards, strict=True)
                    ]
                    local["bank_groups"][1] = None
                    mine["bank_groups"] = [mine["bank_groups"][0], None]
                    truth, gradient = run(contrastive_diffusion_loss, mine, backend="reference")
                out, mine_gradient = run(sharded_contrastive_diffusion_loss, local)
                for value, expected in zip(out, truth, strict=True):
                    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
                close(mine_gradient, gradient, 1e-13)
                single = {k: _as(v, torch.float32) for k, v in local.items()}
                close(run(sharded_contrastive_diffusion_loss, single)[1], gradient, 2e-6)
                close(run(sharded_contrastive_diffusion_loss, single, dtype=torch.bfloat16)[1], gradient, 1e-2)
                with torch.no_grad():
                    assert torch.equal(sharded_contrastive_diffusion_loss(**local).loss, out.loss)
    # No positives given: those of the own rank's shard.
    local["positives"] = None
    mine["positives"] = [torch.arange(sizes[rank]) + sum(s[:rank]) for s in shards]
    truth, gradient = run(contrastive_diffusion_loss, mine, backend="reference")
    close(run(sharded_contrastive_diffusion_loss, local)[1], gradient, 1e-13)


def _as(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return [_as(one, dtype) for one in value] if isinstance(value, list) else value


def check_sharded_numerics(rank: int, ranks: int) -> None:
    """Logits of tens of thousands, a saturated softmax, and a bank with a large shared mean."""
    for scale, shift, temperature in ((40.0, 0.0, 1.0), (1.0, 0.0, 1e-3), (0.05, 5.0, 1.0)):
        whole = make(4 * ranks, [6 * ranks], LATENT)
        whole["banks"] = [whole["banks"][0] * scale + shift]
        whole["temperature"] = temperature
        whole["bank_weights"] = [1e3]
        mine = spread(whole, [4] * ranks, rank)
        _, truth = run(contrastive_diffusion_loss, to_double(mine), backend="reference")
        _, one = run(contrastive_diffusion_loss, mine, backend="reference")
        mine["banks"] = [mine["banks"][0].chunk(ranks)[rank]]
        out, many = run(sharded_contrastive_diffusion_loss, mine)
        assert out.loss.isfinite() and bool((out.contrastive >= 0).all())
        bar = 2 * max(error(one, truth), torch.finfo(torch.float32).eps)
        assert error(many, truth) <= bar, (error(many, truth), bar)
        if shift:  # in bfloat16 the shared mean would drown what differs
            close(run(sharded_contrastive_diffusion_loss, mine, dtype=torch.bfloat16)[1], truth, 1e-2)


def check_sharded_wire(rank: int, ranks: int) -> None:
    """Queries go out and gradients come back, once, whatever the banks; the backward pass sends nothing."""
    size = 6
    for dtype, itemsize in ((None, 4), (torch.bfloat16, 2)):
        for shards in ([3], [50, 9]):
            whole = make(size * ranks, [n * ranks for n in shards], LATENT)
            mine = spread(whole, [size] * ranks, rank)
            mine["banks"] = [bank.chunk(ranks)[rank] for bank in mine["banks"]]
            prediction = mine["prediction"].clone().requires_grad_()
            with Wire() as wire:
                out = sharded_contrastive_diffusion_loss(**{**mine, "prediction": prediction}, dtype=dtype)
            queries, banks = size * ranks, len(shards)
            expected = sharded_bytes(ranks, queries, D, banks, itemsize)
            assert round(wire.sent, 3) == round(expected, 3), (wire.sent, expected)
            with Wire() as wire:
                out.loss.backward()
            assert wire.calls == [] and prediction.grad is not None


def check_sharded_bad_values(rank: int, ranks: int) -> None:
    """A NaN anywhere reaches every query's loss; what ranks disagree about is an error on all of them."""
    whole = make(2 * ranks, [4 * ranks], LATENT)
    mine = spread(whole, [2] * ranks, rank)
    mine["banks"] = [mine["banks"][0].chunk(ranks)[rank].clone()]
    if rank == ranks - 1:
        mine["banks"][0][1, 0, 0, 0] = torch.nan
    out, gradient = run(sharded_contrastive_diffusion_loss, mine)
    assert out.loss.isnan() and bool(gradient.isnan().any())

    def refuse(message: str, **changes: Any) -> None:
        try:
            sharded_contrastive_diffusion_loss(**{**mine, **changes})
        except ValueError as problem:
            assert message in str(problem), problem
        else:
            raise AssertionError(f"no error about {message}")

    refuse("positives holds 99", positives=[torch.tensor([0, 99 if rank == 0 else 1])])
    if rank == 0:
        refuse("query_groups", query_groups=torch.zeros(2, dtype=torch.int64), bank_groups=[None])
    else:
        refuse("query_groups")
    try:
        gather_bank(torch.ones(2, 3 + (rank == 1)))
    except ValueError as problem:
        assert "elements in a latent are [3, 4" in str(problem)
    else:
        raise AssertionError("latents of two sizes were gathered")


def check_queue_as_shard(rank: int, ranks: int) -> None:
    """Each rank queues its own latents: the same loss as one process with all queues."""
    queue = MemoryBank(5, LATENT, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    past = torch.randn(ranks, 5, *LATENT, generator=generator)
    marks = torch.randint(4, (ranks, 5), generator=generator)
    queue.enqueue(past[rank], marks[rank])
    whole = make(2 * ranks, [2 * ranks], LATENT, options=True)
    mine = spread(whole, [2] * ranks, rank)
    clean, groups = whole["banks"][0].split(2), whole["query_groups"].split(2)
    bank, bank_groups = queue.candidates(clean[rank], groups[rank])
    local = {**mine, "banks": [bank], "bank_groups": [bank_groups], "positives": None}
    everything = torch.cat([torch.cat([clean[r], past[r]]) for r in range(ranks)])
    everyones_groups = torch.cat([torch.cat([groups[r], marks[r]]) for r in range(ranks)])
    mine |= {"banks": [everything], "bank_groups": [everyones_groups], "positives": [torch.arange(2) + 7 * rank]}
    truth, gradient = run(contrastive_diffusion_loss, mine, backend="reference")
    out, mine_gradient = run(sharded_contrastive_diffusion_loss, local)
    close(out.loss, truth.loss, 1e-6)
    close(mine_gradient, gradient, 2e-6)


def check_gradient_cache(rank: int, ranks: int) -> None:
    """DDP, gathered bank, micro-batches: the weights' gradient is one process's on everything at once."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, D)).double()
    batch = 6
    whole = make(batch * ranks, [batch * ranks], (D,), dtype=torch.float64)
    whole["positives"] = [torch.arange(batch * ranks)]
    whole["banks"] = [whole["banks"][0].bfloat16()]
    inputs = whole["noisy"]

    def loss_of(arguments: dict[str, Any], prediction: Tensor) -> Tensor:
        return contrastive_diffusion_loss(**{**arguments, "prediction": prediction}).loss

    truth = torch.autograd.grad(loss_of(whole, network(inputs)), list(network.parameters()))
    mine = spread(whole, [batch] * ranks, rank)
    rows = slice(batch * rank, batch * (rank + 1))
    bank = gather_bank(whole["banks"][0][rows])
    mine |= {"banks": [bank.latents], "positives": [bank.positives]}
    wrapped = DistributedDataParallel(network)
    reduced = []
    wrapped.register_comm_hook(None, lambda _, bucket: _average(bucket, reduced))
    for _ in range(2):  # the reducer must be ready for the next step, too
        network.zero_grad()
        cached_backward(
            wrapped,
            inputs[rows].split([1, 3, 2]),
            lambda prediction: loss_of(mine, prediction),
            no_sync=wrapped.no_sync,
        )
        for parameter, expected in zip(network.parameters(), truth, strict=True):
            close(parameter.grad, expected, 1e-13)
    assert len(reduced) == 2, "gradients were reduced more than once a step"


def _average(bucket: Any, reduced: list[int]) -> Any:
    reduced.append(bucket.buffer().numel())
    work = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return work.then(lambda done: done.value()[0] / dist.get_world_size())


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    sharded_op.STRIP_ELEMENTS = 100  # so that every problem here takes several strips
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for name, check in CHECKS.items():
        check(rank, ranks)
        dist.barrier()
        if rank == 0:
            (folder / name).touch()
    dist.destroy_process_group()


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}

if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    world = int(sys.argv[1])
    mp.start_processes(main, (world, Path(sys.argv[2])), nprocs=world, start_method="fork")
