"""Items of many skills (episodes, pairs of episodes) in flat arrays of a fixed size, as the losses take them."""

from collections.abc import Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]


def minibatches(
    items: Sequence[Columns], *, size: int, seed: int, item_id: str = "episode_id", item_count: str = "episodes"
) -> list[dict[str, np.ndarray]]:
    """Cut items into minibatches of exactly `size` skills, whole items only, in a random order.

    Whole episodes at every granularity, so that the trajectory ratio is that of a trajectory and an ablation over the
    granularity changes nothing else. All minibatches hold nearly the same number of skills, long and short items
    mixed; and since their numbers of items differ all the same, the mean number goes with each. The rest is padding.

    Args:
      items: columns `[D, ...]` of each item, the same names in all.
      size: S. Raises ValueError if an item is longer.
      seed: of which items meet, and of the order.
      item_id, item_count: the names of two columns that are added.

    Returns:
      Per minibatch the columns `[S, ...]`, `item_id` int32 [S] counted from 0 in each minibatch, `mask` float32 [S], 0
      for padding, and `item_count` float32 [S], everywhere the mean number of items in one of these minibatches.
    """
    lengths = np.array([len(next(iter(columns.values()))) for columns in items], int)
    if len(lengths) and lengths.max() > size:
        raise ValueError(f"an item has {lengths.max()} skills, more than the {size} of a minibatch")
    bins = balanced_bins(lengths, size=size, seed=seed)
    mean = np.full(size, len(items) / max(len(bins), 1), np.float32)
    return [_fill([items[i] for i in chosen], lengths[chosen], size, item_id) | {item_count: mean} for chosen in bins]


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


def _fill(items: Sequence[Columns], lengths: np.ndarray, size: int, item_id: str) -> dict[str, np.ndarray]:
    used = int(lengths.sum())
    batch = {}
    for name in items[0]:
        column = np.concatenate([columns[name] for columns in items])
        # Padding repeats a real row: whatever is computed from it is finite, and the mask leaves it out.
        batch[name] = np.concatenate([column, np.repeat(column[:1], size - used, axis=0)])
    batch[item_id] = np.pad(np.repeat(np.arange(len(items), dtype=np.int32), lengths), (0, size - used))
    batch["mask"] = (np.arange(size) < used).astype(np.float32)
    return batch
