"""Skills of many episodes in flat arrays of a fixed size, as the clipped surrogate takes them."""

from collections.abc import Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]


def minibatches(
    episodes: Sequence[Columns], advantages: np.ndarray | Sequence[np.ndarray], *, size: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Cut episodes into minibatches of exactly `size` skills, whole episodes only, in a random order.

    Whole episodes at every granularity, so that the trajectory ratio is that of a trajectory and an ablation over the
    granularity changes nothing else. All minibatches hold nearly the same number of skills, long and short episodes
    mixed; and since their numbers of episodes differ all the same, the mean number goes with each. The rest is padding.

    Args:
      episodes: columns `[D, ...]` of each episode, the same names in all.
      advantages: one number per episode, which holds for each of its skills (Eq. 8), or `[D]` numbers.
      size: S. Raises ValueError if an episode is longer.
      seed: of which episodes meet, and of the order.

    Returns:
      Per minibatch the columns `[S, ...]`, `advantage` [S], `episode_id` int32 [S] counted from 0 in each minibatch,
      `mask` float32 [S], 0 for padding, and `episodes` float32 [S], everywhere the mean number of episodes in one of
      these minibatches.
    """
    lengths = np.array([len(next(iter(columns.values()))) for columns in episodes], int)
    if len(lengths) and lengths.max() > size:
        raise ValueError(f"an episode has {lengths.max()} skills, more than the {size} of a minibatch")
    bins = balanced_bins(lengths, size=size, seed=seed)
    mean = np.full(size, len(episodes) / max(len(bins), 1), np.float32)
    return [
        _fill([episodes[i] for i in chosen], [advantages[i] for i in chosen], lengths[chosen], size)
        | {"episodes": mean}
        for chosen in bins
    ]


def balanced_bins(lengths: np.ndarray, *, size: int, seed: int) -> list[np.ndarray]:
    """Indices of items of the given lengths, in as few bins of capacity `size` as a greedy filling finds.

    The longest first, each into the emptiest bin; where the total fills the bins so well that something is left
    over, there is one bin more. Equal lengths, equally full bins and the order of the bins are drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    for count in range(-(-int(lengths.sum()) // size), len(lengths) + 1):
        tie_break = rng.permutation(count)
        filled = np.zeros(count, int)
        bins: list[list[int]] = [[] for _ in range(count)]
        for index in order:
            emptiest = np.lexsort((tie_break, filled))[0]
            if filled[emptiest] + lengths[index] > size:
                break
            filled[emptiest] += lengths[index]
            bins[emptiest].append(int(index))
        else:
            return [np.array(bins[i]) for i in rng.permutation(count)]
    raise ValueError(f"an item is longer than a bin of {size}")


def _fill(
    episodes: Sequence[Columns], advantages: Sequence[np.ndarray], lengths: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    used = int(lengths.sum())
    batch = {}
    for name in episodes[0]:
        column = np.concatenate([columns[name] for columns in episodes])
        # Padding repeats a real row: whatever is computed from it is finite, and the mask leaves it out.
        batch[name] = np.concatenate([column, np.repeat(column[:1], size - used, axis=0)])
    per_skill = [np.broadcast_to(value, (length,)) for value, length in zip(advantages, lengths, strict=True)]
    batch["advantage"] = np.pad(np.concatenate(per_skill).astype(np.float32), (0, size - used))
    batch["episode_id"] = np.pad(np.repeat(np.arange(len(episodes), dtype=np.int32), lengths), (0, size - used))
    batch["mask"] = (np.arange(size) < used).astype(np.float32)
    return batch
