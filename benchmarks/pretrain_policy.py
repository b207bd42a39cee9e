"""Trains the amortised policy on generated networks. Run: python benchmarks/pretrain_policy.py --help

All log odds of a proposal are moved alike until it uses exactly the budget. Then the policy learns to lower the distance of that
plan. The multiplier of the constraint is known there: it is the ratio of the two slopes along the move.

    d(log distance) - mu d(latency),   mu = (d log distance / d move) / (d latency / d move)
"""

import math
import time
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch
from generated_spaces import LEAST, Spaces, generate
from generated_tables import HELD_OUT_SEED
from torch import Tensor

from pipeline.search.amortised_policy import CHECKPOINT, AmortisedPolicy
from pipeline.system.files import write_atomically

BATCH = 48
BUDGETS = (0.15, 0.7)
"""The range of the shares of latency that the policy is trained for."""


@click.command()
@click.option("--networks", default=4000, show_default=True, help="Generated ones.")
@click.option("--steps", default=3000, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--held-out", default=200, show_default=True, help="Generated networks for the table. None of them is trained on.")
@click.option("--out", type=click.Path(path_type=Path), default=CHECKPOINT, show_default=True)
@click.option("--table", is_flag=True, help="Train nothing; compare the policy in --out with uniform plans and with optima.")
def main(networks: int, steps: int, learning_rate: float, seed: int, held_out: int, out: Path, table: bool) -> None:
    """Train, write the checkpoint, and print the comparison."""
    policy = AmortisedPolicy()
    if table:
        policy.load_state_dict(safetensors.torch.load_file(out))
    else:
        torch.manual_seed(seed)
        policy = AmortisedPolicy()
        train(policy, generate(networks, seed), steps, learning_rate, seed)
        write_atomically(out, safetensors.torch.save(policy.state_dict()))
    compare(policy, generate(held_out, HELD_OUT_SEED))


def train(policy: AmortisedPolicy, spaces: Spaces, steps: int, learning_rate: float, seed: int) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(policy.parameters(), learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    generator = np.random.default_rng(seed)
    started, seen = time.process_time(), []
    for step in range(steps):
        batch = spaces.subset(torch.from_numpy(generator.integers(len(spaces.channels), size=BATCH)))
        budget = torch.from_numpy(np.exp(generator.uniform(math.log(BUDGETS[0]), math.log(BUDGETS[1]), BATCH)).astype(np.float32))
        odds = policy(batch.features, budget, batch.absent)
        loss, gain, moved = objective(batch, odds, budget)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen.append((gain, moved))
        if (step + 1) % 250 == 0:
            gains, moves = np.mean(seen[-250:], axis=0)
            text = f"{step + 1}: distance {np.exp(gains):.3f} of uniform's, move {moves:.3f}"
            print(f"{text}, {time.process_time() - started:.0f} s", flush=True)


def objective(spaces: Spaces, odds: Tensor, budget: Tensor) -> tuple[Tensor, float, float]:
    """The loss of proposals (n, G); the mean log distance against uniform plans at the same latency; and the mean move."""
    move = (moved := move_to(spaces, odds.detach(), budget)).requires_grad_()
    fractions = torch.sigmoid(odds + move[:, None])
    log_distance, latency = torch.log(spaces.distance(fractions)), spaces.latency(fractions, steps=False)
    slopes = [torch.autograd.grad(value.sum(), move, retain_graph=True)[0] for value in (log_distance, latency)]
    multiplier = slopes[0] / slopes[1].clamp(min=1e-4)
    flat = torch.zeros_like(odds)
    with torch.no_grad():
        uniform = torch.sigmoid(flat + move_to(spaces, flat, budget)[:, None])
        against = torch.log(spaces.distance(uniform))
    calibrated = torch.sigmoid(odds)  # the proposal itself should also use about the budget
    off = torch.log(spaces.latency(calibrated, steps=False) / budget)
    reached = (latency.detach() - budget).abs() < 0.01
    kept = reached.float() / reached.sum().clamp(min=1)
    loss = (kept * (log_distance - multiplier.detach() * latency)).sum() + 0.1 * off.square().mean()
    return loss, float((kept * (log_distance - against)).sum().detach()), float(moved.detach().abs().mean())


def move_to(spaces: Spaces, odds: Tensor, budget: Tensor, steps: bool = False, halvings: int = 18) -> Tensor:
    """(n,): what must be added to all log odds of a network so that its latency is the budget."""
    low, high = torch.full_like(budget, -8.0), torch.full_like(budget, 8.0)
    with torch.no_grad():
        for _ in range(halvings):
            middle = (low + high) / 2
            over = _latency(spaces, torch.sigmoid(odds + middle[:, None]), steps) > budget
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return low


def compare(policy: AmortisedPolicy, spaces: Spaces) -> None:
    """Print the score within a budget, with widths in steps of four: uniform, sensitivity, policy, and an optimum by gradient.

    The plans of *sensitivity* are those of `pipeline.search.sensitivity`: the smallest sum of measured distances for each number
    of MACs, taken to add up.
    """
    known = spaces.proxies[..., 0].amax(1) > 0
    print("| latency | distances | networks | uniform | sensitivity | policy | gradient | policy better than sensitivity |")
    print("| --: | --- | --: | --: | --: | --: | --: | --: |")
    for share in (0.5, 0.35, 0.25):
        budget = torch.full((len(known),), share)
        with torch.no_grad():
            rows = {"uniform": torch.zeros_like(spaces.channels), "policy": policy(spaces.features, budget, spaces.absent)}
        rows["gradient"] = optimised(spaces, rows["policy"], budget)
        scores, fits = {}, torch.ones_like(known)
        plans = {name: torch.sigmoid(odds + move_to(spaces, odds, budget, steps=True)[:, None]) for name, odds in rows.items()}
        plans = {"uniform": plans.pop("uniform"), "sensitivity": by_sensitivity(spaces, budget), **plans}
        for name, plan in plans.items():
            fractions = spaces.snapped(plan)
            scores[name] = spaces.score(fractions)
            fits &= spaces.latency(fractions) <= 1.001 * budget
        for name, chosen in (("known", known & fits), ("unknown", ~known & fits)):
            means = [f"{float(found[chosen].mean()):.1f}" for found in scores.values()]
            wins = float((scores["policy"] > scores["sensitivity"])[chosen].float().mean())
            print(f"| {share:.0%} | {name} | {int(chosen.sum())} | {' | '.join(means)} | {wins:.0%} |")


def by_sensitivity(spaces: Spaces, budget: Tensor) -> Tensor:
    """The fractions (n, G) at which another MAC costs the same distance in every group, within the budget.

    The distance of a group is a power law through its two measured ones; unknown ones count as equal.
    """
    power = ((spaces.proxies[..., 2] - spaces.proxies[..., 1]) / np.log(2)).clamp(1.05, 4.0)
    at_half = torch.exp(spaces.proxies[..., 2])
    share = torch.exp(spaces.features[..., 1])
    low, high = torch.full_like(budget, -12.0), torch.full_like(budget, 12.0)

    def plan(price: Tensor) -> Tensor:
        removed = 0.5 * (torch.exp(price)[:, None] * share / (at_half * power)).pow(1 / (power - 1))
        kept: Tensor = (1 - removed).clamp(LEAST, 1.0)
        return kept

    for _ in range(24):
        middle = (low + high) / 2
        within = _latency(spaces, plan(middle), steps=True) <= budget
        low, high = torch.where(within, low, middle), torch.where(within, middle, high)
    return plan(high)


def optimised(spaces: Spaces, odds: Tensor, budget: Tensor, steps: int = 150) -> Tensor:
    """Log odds that were improved by gradient for each network, with everything known. No search can know as much."""
    free = odds.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(spaces, free, budget)[0].mul(len(budget)).backward()
        optimizer.step()
    return free.detach()


def _latency(spaces: Spaces, fractions: Tensor, steps: bool) -> Tensor:
    return spaces.latency(spaces.snapped(fractions) if steps else fractions, steps=steps)


if __name__ == "__main__":
    main()
