"""Every kind of policy beside QueST, as small as it goes, for the environment without a simulator."""

_CODES = {"chunk_length": 8, "history": 2, "latent": 8, "autoencoder_hidden": (16,), "width": 16, "layers": 1,
          "heads": 2, "out": 16, "hidden": (16,)}  # fmt: skip
TINY = {
    "act": {"chunk_length": 8, "width": 16, "heads": 2, "feed_forward": 16, "style_layers": 1, "encoder_layers": 1,
            "decoder_layers": 1, "style": 4},
    "diffusion": {"chunk_length": 8, "widths": (16, 16), "condition": 16, "diffusion_steps": 10, "denoising_steps": 2},
    "mdt": {"chunk_length": 8, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "denoising_steps": 2},
    "resnet_t": {"chunk_length": 8, "history": 2, "width": 16, "layers": 1, "heads": 2, "head_width": 8,
                 "hidden": (16,)},
    "vqbet": _CODES,
    "star": _CODES,
}  # fmt: skip


def changes(kind: str) -> list[tuple[str, str]]:
    """What makes the config of tests/configs/fake.py one of this kind."""
    return [(f"policy.{key}", str(value)) for key, value in ({"name": kind} | TINY[kind]).items()]
