"""QueST: an FSQ action autoencoder and an autoregressive prior over its skills."""
