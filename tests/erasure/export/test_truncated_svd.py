"""The randomized SVD against the exact one."""

import torch

from erasure.export.lora import truncated_svd


def test_the_fast_svd_is_near_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for decay in (0.0, 0.5, 1.0, 2.0):
        u, _ = torch.linalg.qr(torch.randn(400, 300, generator=generator))
        v, _ = torch.linalg.qr(torch.randn(600, 300, generator=generator))
        s = torch.arange(1, 301).float() ** -decay
        delta = (u * s) @ v.T
        up, down = truncated_svd(delta, 16)
        best = (s[16:].square().sum() / s.square().sum()).sqrt().item()
        error = ((delta - up @ down).norm() / delta.norm()).item()
        assert best * (1 - 1e-4) <= error <= best * 1.005
        state = torch.random.get_rng_state()
        repeated = truncated_svd(delta, 16)
        assert torch.equal(repeated[0], up) and torch.equal(repeated[1], down) and torch.equal(state, torch.random.get_rng_state())
        convolution = truncated_svd(delta.reshape(400, -1, 2, 2), 16)
        assert convolution[0].shape == (400, 16, 1, 1) and convolution[1].shape == (16, 150, 2, 2)
        assert torch.allclose(convolution[0].flatten(1) @ convolution[1].flatten(1), up @ down, atol=1e-6)
