"""Stage spo: groups of rollouts and the updates that learn from them."""
