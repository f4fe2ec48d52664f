"""The stages of the cascade: one file is one stage is one resumable function of a `Run`."""
