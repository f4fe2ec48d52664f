"""Skills of many episodes in flat arrays of a fixed size, as the clipped surrogate takes them."""

from collections.abc import Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]


def minibatches(
    episodes: Sequence[Columns], advantages: np.ndarray, *, size: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Cut episodes into minibatches of exactly `size` skills, whole episodes only, in a random order.

    Whole episodes at every granularity, so that the trajectory ratio is that of a trajectory and an ablation over the
    granularity changes nothing else. Room that the next episode does not fit into is padding.

    Args:
      episodes: columns `[D, ...]` of each episode, the same names in all.
      advantages: `[len(episodes)]`; an episode's advantage holds for each of its skills (Eq. 8).
      size: S. Raises ValueError if an episode is longer.
      seed: of the order.

    Returns:
      Per minibatch the columns `[S, ...]`, `advantage` [S], `episode_id` int32 [S] counted from 0 in each minibatch,
      and `mask` float32 [S], 0 for padding.
    """
    lengths = np.array([len(next(iter(columns.values()))) for columns in episodes])
    if len(lengths) and lengths.max() > size:
        raise ValueError(f"an episode has {lengths.max()} skills, more than the {size} of a minibatch")
    bins: list[list[int]] = []
    room = 0
    for index in np.random.default_rng(seed).permutation(len(episodes)):
        if not bins or lengths[index] > room:
            bins.append([])
            room = size
        bins[-1].append(int(index))
        room -= lengths[index]
    return [_fill([episodes[i] for i in chosen], advantages[chosen], lengths[chosen], size) for chosen in bins]


def _fill(episodes: Sequence[Columns], advantages: np.ndarray, lengths: np.ndarray, size: int) -> dict[str, np.ndarray]:
    used = int(lengths.sum())
    batch = {}
    for name in episodes[0]:
        column = np.concatenate([columns[name] for columns in episodes])
        # Padding repeats a real row: whatever is computed from it is finite, and the mask leaves it out.
        batch[name] = np.concatenate([column, np.repeat(column[:1], size - used, axis=0)])
    batch["advantage"] = np.pad(np.repeat(advantages, lengths).astype(np.float32), (0, size - used))
    batch["episode_id"] = np.pad(np.repeat(np.arange(len(episodes), dtype=np.int32), lengths), (0, size - used))
    batch["mask"] = (np.arange(size) < used).astype(np.float32)
    return batch
