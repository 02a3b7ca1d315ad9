"""Offload: components take turns on the device.

The device is torch's meta device, which refuses to compute with tensors of the CPU just as a GPU does. Its tensors have no values, so what
returns to main memory is empty, and the values of a model are not looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from erasure.config.choices import Offload, VaeMode
from erasure.errors import UserError
from erasure.families import batching, placement
from erasure.families.base import DiffusionModel
from erasure.families.batching import fitting_images, images_at_once
from erasure.families.placement import bring, choose_offload, components_of, place, set_vae_mode, take_turns
from erasure.families.supported_models import spec_of_pipeline
from erasure.loading.loader import load_model
from erasure.memory.gpu_kernels import GpuKernels
from erasure.methods.fia import FIA, LayerSaliency
from erasure.training.activations import ActivationRecorder
from erasure.training.fill_cache import trajectories_at_once
from eval.generation import batch_size_of
from tests import tiny, tiny_families, tiny_sd3

GIB = 2**30
META = torch.device("meta")
PIPELINES = {
    "sd": lambda: tiny.pipeline(),
    "sdxl": tiny_families.sdxl,
    "sd3": tiny_sd3.pipeline,
    "flux": tiny_families.flux,
    "klein": tiny_families.klein,
}
OPTIONS: dict[str, dict[str, int]] = {"flux": {"image_size": 32, "t5_length": 24}, "klein": {"image_size": 32, "text_length": 96}}
OFFLOADS: tuple[Offload, ...] = ("text", "all")


@pytest.fixture(autouse=True)
def moves_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "move", lambda network, device: network.to_empty(device=device))


def offloaded(name: str, offload: Offload) -> DiffusionModel:
    pipe = PIPELINES[name]()
    spec = spec_of_pipeline(pipe)
    take_turns(pipe, META, {spec.denoiser} if offload == "text" else set())
    model = spec.open(pipe, name, precision="fp32", **OPTIONS.get(name, {}))
    model.check_finite = lambda values, label: values  # type: ignore[method-assign]  # meta tensors have no values to check
    assert model.device == META
    return model


def on_device(model: DiffusionModel) -> set[str]:
    """The components whose parameters are all on the device; one that is split is an error."""
    devices = {name: {p.device for p in part.parameters()} for name, part in components_of(model.pipe).items()}
    assert all(len(places) == 1 for places in devices.values())
    return {name for name, places in devices.items() if places == {META}}


@contextmanager
def training(model: DiffusionModel, region: str) -> Iterator[list[nn.Parameter]]:
    """Let a region train that is on the device. `unfreeze` would copy its values, which are not there."""
    parameters = [model.parameters()[name] for name in model.parameter_names(region)]
    for p in parameters:
        p.requires_grad_(True)
    yield parameters
    for p in parameters:
        p.requires_grad_(False)


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", PIPELINES)
def test_components_take_turns_while_images_are_made(name: str, offload: Offload) -> None:
    with GpuKernels(), torch.no_grad():
        model = offloaded(name, offload)
        denoiser = next(iter(model.networks))
        stays = {denoiser} if offload == "text" else set()
        assert on_device(model) == stays
        last_encoder = sorted(part for part in components_of(model.pipe) if part.startswith("text_encoder"))[-1]
        model.encode(["a cat", "a dog"])
        assert on_device(model) == stays | {last_encoder}
        latents = model.sample(["a cat", "a dog"], [0, 1], steps=2)
        assert on_device(model) == {denoiser}
        images = model.decode(latents)
        assert on_device(model) == stays | {"vae"}
        assert model.encode_images(images).device == META and on_device(model) == stays | {"vae"}
        bring(model.denoiser)
        assert on_device(model) == {denoiser}


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", PIPELINES)
def test_what_trains_stays(name: str, offload: Offload) -> None:
    """The steps of a training loop: the prompts before anything trains, then predictions with gradients, and other images in between."""
    with GpuKernels():
        model = offloaded(name, offload)
        denoiser = next(iter(model.networks))
        with torch.no_grad():
            cond = model.encode(["a cat"])
        x_t, t = torch.empty(1, *model.latent_shape, device=META), torch.empty(1, device=META)
        bring(model.denoiser)
        with training(model, "full") as parameters:
            assert on_device(model) == {denoiser}
            optimizer = torch.optim.Adam(parameters)
            for _ in range(2):
                loss = model.predict(x_t, t, cond).square().mean()
                torch.autograd.backward(loss, inputs=parameters)
                optimizer.step()
                with torch.no_grad():
                    model.decode(model.sample(["a dog"], [0], steps=1))
                assert {p.device for p in parameters} == {p.grad.device for p in parameters if p.grad is not None} == {META}
            assert on_device(model) == {denoiser, "vae"}
        with torch.no_grad():
            model.encode(["a cat"])
        assert (denoiser in on_device(model)) == (offload == "text")


@pytest.mark.parametrize("offload", OFFLOADS)
def test_text_encoders_that_train_stay(offload: Offload) -> None:
    with GpuKernels():
        model = offloaded("sd", offload)
        x_t, t = torch.empty(1, *model.latent_shape, device=META), torch.empty(1, device=META)
        bring(model.pipe.text_encoder)
        with training(model, "text-encoder") as parameters:
            loss = model.predict(x_t, t, model.encode(["a cat"])).square().mean()
            assert on_device(model) == {"unet", "text_encoder"}  # a backward pass will go through both
            torch.autograd.backward(loss, inputs=parameters)
            torch.optim.Adam(parameters).step()
            with torch.no_grad():
                model.decode(model.sample(["a cat"], [0], steps=1))
            assert "text_encoder" in on_device(model)
        with torch.no_grad():
            model.decode(model.sample(["a cat"], [0], steps=1))
        assert "text_encoder" not in on_device(model)


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_soft_tokens_get_gradients(name: str, offload: Offload) -> None:
    """An attack: nothing trains, and the backward pass goes through denoiser and text encoders."""
    with GpuKernels():
        model = offloaded(name, offload)
        prefix = model.token_embeddings()[:2].to(META).requires_grad_(True)
        x_t, t = torch.empty(1, *model.latent_shape, device=META), torch.empty(1, device=META)
        (gradient,) = torch.autograd.grad(model.predict(x_t, t, model.encode(["a cat"], prefix)).square().mean(), prefix)
        assert gradient.shape == prefix.shape and gradient.device == META


@pytest.mark.parametrize("offload", OFFLOADS)
def test_fia_reads_weights_where_they_compute(offload: Offload) -> None:
    with GpuKernels():
        model = offloaded("sd", offload)
        bring(model.denoiser)
        weights = {name: layer.weight.float() for name, layer in model.linear_layers("full").items()}
        layers = {name: LayerSaliency(weight, FIA()) for name, weight in weights.items()}
        recorder = ActivationRecorder(model, steps=2, record_steps=1, guidance=3.0, seed=0)
        for _ in recorder.record(["a cat"], ["a"], {name: layer.add_activations for name, layer in layers.items()}):
            for layer in layers.values():
                layer.end_timestep()
        assert {layer.total.device for layer in layers.values()} == {META} and on_device(model) == {"unet"}


def test_the_offload_follows_the_sizes() -> None:
    sdxl = {"unet": 5 * GIB, "text_encoder": GIB // 4, "text_encoder_2": GIB * 5 // 4, "vae": GIB // 6}
    assert [choose_offload(sdxl, "unet", card * GIB) for card in (8, 16, 24)] == ["all", "text", "text"]
    flux = {"transformer": 22 * GIB, "text_encoder": GIB // 4, "text_encoder_2": 9 * GIB, "vae": GIB // 6}
    assert [choose_offload(flux, "transformer", card * GIB) for card in (24, 40, 80)] == ["all", "all", "text"]
    small = {"unet": 2 * GIB, "text_encoder": GIB // 4, "vae": GIB // 6}
    assert [choose_offload(small, "unet", card * GIB) for card in (2, 4, 8)] == ["all", "none", "none"]


def test_without_a_gpu_nothing_is_offloaded() -> None:
    pipe = tiny.pipeline()
    place(pipe, "unet", torch.device("cpu"))
    assert not hasattr(pipe.unet, "_hf_hook")
    with pytest.raises(UserError, match="--offload all keeps components in main memory instead of a GPU's, and cpu has none"):
        load_model("pocket", device="cpu", offload="all")


@torch.no_grad()
def test_slices_are_the_whole_and_tiles_nearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "TILE_PIXELS", 32)
    vae = load_model("pocket", device="cpu", dtype="fp32").pipe.vae
    ramp = torch.linspace(-1, 1, 64)
    latents = vae.encode(torch.stack((ramp[:, None] * ramp, ramp.expand(64, 64)))[:, None].expand(-1, 3, -1, -1)).latent_dist.mean
    images: dict[VaeMode, Tensor] = {}
    for mode in ("whole", "sliced", "tiled"):
        set_vae_mode(vae, mode, torch.device("cpu"))
        images[mode] = vae.decode(latents).sample
    assert torch.allclose(images["whole"], images["sliced"], atol=1e-5)
    error = (images["whole"] - images["tiled"]).abs().mean()
    assert images["tiled"].shape == images["whole"].shape and 0 < error < 0.5 * images["whole"].abs().mean()


def test_tiled_images_have_their_own_cache() -> None:
    whole, tiled = load_model("pocket", device="cpu"), load_model("pocket", device="cpu", vae="tiled")
    assert {**whole.compute_key(), "vae": "tiled"} == tiled.compute_key()
    set_vae_mode(tiled.pipe.vae, "auto", torch.device("cpu"))
    assert whole.compute_key() == tiled.compute_key()
    set_vae_mode(tiled.pipe.vae, "auto", torch.device("cuda"))
    assert tiled.pipe.vae.use_slicing and not tiled.pipe.vae.use_tiling


def test_batches_follow_the_card() -> None:
    assert fitting_images(24 * GIB, 6 * GIB, 7 * GIB, 45) == 16  # 21.6 GiB are usable: one image, and 15 more of one each
    assert fitting_images(24 * GIB, 6 * GIB, 7 * GIB, 8) == 8
    assert fitting_images(8 * GIB, 10 * GIB, 12 * GIB, 8) == 1
    model = load_model("pocket", device="cpu", images_at_once=3)
    assert (images_at_once(model, 45), trajectories_at_once(model), batch_size_of(model)) == (3, 3, 3)
    with pytest.raises(UserError, match="images_at_once"):
        load_model("pocket", device="cpu", images_at_once=0)


def test_a_card_that_holds_one_image_makes_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_: DiffusionModel, count: int) -> int:
        if count > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 6 * GIB

    monkeypatch.setattr(batching, "measure_peak", measure)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * GIB))
    model = load_model("pocket", device="cpu")
    model.device = torch.device("cuda")
    assert images_at_once(model, 45) == 1
