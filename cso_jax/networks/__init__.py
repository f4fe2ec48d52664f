"""flax.linen modules of the policy: action autoencoder, skill prior, vision trunk, observation encoder."""
