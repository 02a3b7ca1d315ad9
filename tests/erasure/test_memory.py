"""The forecast of memory: its parts against counts, and its sums against peaks that were measured on tiny models of every family.

The measure is torch's profiler, which records every allocation and release of the CPU allocator with its size. Summed up in time they give
the exact peak of a real training or sampling, workspaces of kernels included. Weights exist before and are added to neither side, so that
they cannot hide an error.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from erasure.concept import Concept
from erasure.config.choices import Offload
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.released_models import RELEASED
from erasure.families.resolution import set_resolution
from erasure.families.supported_models import spec_of_pipeline
from erasure.loading.skeleton import build_skeleton, read_model, wrap_skeleton
from erasure.memory import counts
from erasure.memory.forecast import ModelForecast
from erasure.memory.formula import GIB, Forecast, Pass, Phase, Trained
from erasure.memory.live_bytes import LiveBytes
from erasure.memory.shipped import load_forecasts, smallest_card
from erasure.methods.esd import ESD
from erasure.training.fill_cache import fill_from_trajectories, join_parts
from erasure.training.loop import TrainingOptions, train
from tests import tiny, tiny_families, tiny_sd3

TOLERANCE = 0.15


@dataclass(frozen=True)
class Pair:
    """A tiny model, and the same without values."""

    real: DiffusionModel
    skeleton: DiffusionModel


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": lambda: tiny.pipeline(width=32, size=16),
    "sdxl": tiny_families.sdxl,
    "sd3": tiny_sd3.pipeline,
    "flux": tiny_families.flux,
    "klein": tiny_families.klein,
}
OPTIONS: dict[str, dict[str, int]] = {"flux": {"image_size": 32, "t5_length": 128}, "klein": {"image_size": 64, "text_length": 128}}


@cache
def pair_of(name: str) -> Pair:
    pipe = PIPELINES[name]()
    spec, options = spec_of_pipeline(pipe), OPTIONS.get(name, {})
    real = spec.open(pipe, name, precision="fp32", **options)
    empty = copy.deepcopy(pipe)
    for component in empty.components.values():
        if isinstance(component, nn.Module):
            component.to("meta")
    empty.__class__ = type(type(pipe).__name__, (type(pipe),), {"device": torch.device("cpu")})
    skeleton = wrap_skeleton(empty, spec, name, on_gpu=False, **options)
    if name == "sdxl":
        real.latent_shape = skeleton.latent_shape = (4, 16, 16)  # at 8 x 8 small constants dominate
    return Pair(real, skeleton)


def measure_peak(work: Callable[[], object]) -> int:
    """Return the largest sum of bytes that a piece of work had allocated and not released."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    live = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def train_once(model: DiffusionModel, method: ESD, folder: Path, checkpointing: bool) -> Callable[[], object]:
    """Return a training of three steps, with its teacher cache made already."""
    query = method.query([Concept(name="neon")], 0)
    cached = join_parts(query, [fill_from_trajectories(model, query, query.trajectory_starts())])
    return lambda: train(model, method, cached, TrainingOptions(folder=folder, gradient_checkpointing=checkpointing))


def forecast_training(model: DiffusionModel, method: ESD, checkpointing: bool) -> int:
    """Return the forecast of such a training beside the weights: prompts are encoded, then steps are taken."""
    prompts = len(method.query([Concept(name="neon")], 0).all_prompts())
    trained, work = counts.count_step(model, method, method.samples_per_backward, checkpointing, on_gpu=False)
    training = Phase(name="training", weights={"none": 0}, work=work, trained=trained, on_gpu=False)
    return max(training.peak(), counts.count_encoding(model, prompts))


CASES = [
    *(("sd", region, checkpointing) for region in ("xattn", "full") for checkpointing in (False, True)),
    *((name, region, region == "full") for name in ("sdxl", "sd3", "flux", "klein") for region in ("xattn", "full")),
]


@pytest.mark.parametrize(("name", "region", "checkpointing"), CASES)
def test_the_forecast_of_a_training_is_what_it_takes(name: str, region: Any, checkpointing: bool, tmp_path: Path) -> None:
    method = ESD(region=region, steps=2, batch=4, trajectories=4, trajectory_steps=2)
    measured = measure_peak(train_once(pair_of(name).real, method, tmp_path, checkpointing))
    assert forecast_training(pair_of(name).skeleton, method, checkpointing) == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_forecast_of_sampling_is_what_it_takes(name: str) -> None:
    pair = pair_of(name)
    measured = measure_peak(lambda: pair.real.decode(pair.real.sample(["a"] * 4, range(4), steps=2)))
    forecast = ModelForecast(pair.skeleton, on_gpu=False)
    assert forecast.sampling(4).peak - sum(forecast.sizes.values()) == pytest.approx(measured, rel=TOLERANCE)


def test_sizes_are_those_of_the_networks() -> None:
    pair = pair_of("sd")
    networks = [part for part in pair.real.pipe.components.values() if isinstance(part, nn.Module)]
    assert sum(ModelForecast(pair.skeleton, on_gpu=False).sizes.values()) == sum(
        v.nbytes for part in networks for v in (*part.parameters(), *part.buffers())
    )
    regions = {region: count for region, count, _ in counts.region_sizes(pair.skeleton)}
    parameters = pair.real.parameters()
    assert regions["xattn"] == sum(parameters[name].numel() for name in pair.real.parameter_names("xattn"))
    trained, _ = counts.count_step(pair.skeleton, ESD(batch=1), 1, on_gpu=False)
    assert (trained.count, trained.stored_bytes, trained.copies) == (regions["xattn"], 4 * regions["xattn"], 0)
    assert not any(p.requires_grad for p in pair.skeleton.parameters().values())


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing() -> None:
    model = pair_of("sd3").skeleton
    one, two, four = (counts.count_step(model, ESD(), samples, on_gpu=False)[1].forward for samples in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    assert counts.count_step(model, ESD(), 4, checkpointing=True, on_gpu=False)[1].forward < 0.7 * four


def test_what_the_forward_pass_keeps_is_what_autograd_saves() -> None:
    """Live storages at the end of a forward pass, against the hooks of autograd, on real tensors."""
    network, x = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)), torch.randn(32, 64)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with LiveBytes([x, *network.parameters()]) as live, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = network(x)
    existing = {tensor.untyped_storage().data_ptr() for tensor in (x, *network.parameters())}
    assert live.live == sum(size for key, size in saved.items() if key not in existing) + y.untyped_storage().nbytes()
    del y
    assert live.live == 0


def test_the_formula_adds_up_what_is_alive_together() -> None:
    trained = Trained(count=100, largest=40, stored_bytes=200, has_mask=True)
    work = Pass(forward=1000, backward=1300)
    weights: dict[Offload, int] = {"none": 5000, "text": 4000, "all": 3000}
    phase = Phase(name="training", weights=weights, work=work, trained=trained)
    assert phase.parts() == {
        **{"weights": 5000, "fp32 copies": 200, "moments": 800, "mask": 100, "originals": 0},
        **{"gradients": 400, "activations": 1000},
    }
    assert (phase.peak(), phase.peak("text"), phase.peak("all")) == (7500, 6500, 5500)
    update = Phase(name="training", weights=weights, work=Pass(forward=10, backward=20), trained=trained)
    assert update.parts()["activations"] == 400  # Adam
    cache = Phase(name="teacher cache", weights=weights, work=work, least=Pass(forward=100))
    assert (cache.peak(), cache.smallest.peak(), cache.smallest.peak("all")) == (6000, 5100, 3100)


def test_a_card_is_enough_with_the_offload_that_is_chosen_on_it() -> None:
    seven = Phase(name="x", weights={"none": 7 * GIB, "text": 7 * GIB, "all": 4 * GIB}, work=Pass(forward=0))
    assert Forecast(name="x", phases=(seven,)).cards == [8, 16, 24, 80]
    ten = Phase(name="y", weights={"none": 20 * GIB, "text": 12 * GIB, "all": 6 * GIB}, work=Pass(forward=GIB))
    offloads: dict[int, Offload] = {8: "all", 16: "text", 24: "none", 80: "none"}
    forecast = Forecast(name="y", phases=(seven, ten), offloads=offloads)
    assert (forecast.cards, forecast.card, forecast.offload, forecast.peak, forecast.largest) == ([8, 16, 24, 80], 8, "all", 7 * GIB, ten)
    stays = replace(forecast, offloads=dict.fromkeys(offloads, "none"))
    assert (stays.cards, stays.peak) == ([24, 80], 21 * GIB)
    assert smallest_card(7 * GIB + 1) == "from 16 GB" and smallest_card(100 * GIB) == "over 80 GB"


@pytest.mark.parametrize("name", PIPELINES)
def test_what_computes_is_what_is_on_the_device(name: str) -> None:
    """Sizes with an offload, from the networks."""
    forecast = ModelForecast(pair_of(name).skeleton)
    sizes, denoiser = forecast.sizes, forecast.sizes[forecast.denoiser]
    text = [size for part, size in sizes.items() if part.startswith("text_encoder")]
    assert forecast.weights("text") == {"none": sum(sizes.values()), "text": denoiser + max(text), "all": max(text)}
    assert forecast.weights("denoiser")["text"] == forecast.weights("denoiser")["all"] == denoiser
    assert forecast.weights("vae")["all"] == sizes["vae"] == forecast.weights("vae")["text"] - denoiser
    assert forecast.weights("denoiser and text")["all"] == denoiser + sum(text)


def test_a_gpu_computes_in_half_precision_with_fp32_masters() -> None:
    model = build_skeleton(read_model("pocket"), "pocket")
    trained, work = counts.count_step(model, ESD(region="xattn-kv"), 1)
    assert trained.copies == 2 * trained.count and trained.stored_bytes == 2 * trained.count
    assert work.forward < counts.count_step(model, ESD(region="xattn-kv"), 2)[1].forward
    assert model.denoiser.dtype is torch.float16
    with pytest.raises(UserError, match="no images of 250 pixels a side; use a multiple of 16"):
        set_resolution(model, 250)


def test_shipped_forecasts_are_those_of_the_code() -> None:
    """Of the smallest model; scripts/write_memory_guide.py writes all of them."""
    shipped = load_forecasts()
    assert set(shipped) >= {model.name for model in RELEASED} - {"pocket-flow"}
    model = build_skeleton(read_model("pocket"), "pocket")
    forecast = ModelForecast(model)
    for name in ("esd", "uce", "fia"):
        assert forecast.method(name).peak == pytest.approx(shipped["pocket"].peaks[name], rel=0.02), "run scripts/write_memory_guide.py"
    cards_of_the_guide = [  # docs/guides/other-models.md
        smallest_card(peak)
        for peak in (
            *(shipped["sdxl"].peaks["uce"], shipped["sdxl"].checkpointed["esd"]),
            *(shipped["klein-base-4b"].peaks["uce"], shipped["klein-base-4b"].checkpointed["esd"], shipped["flux-dev"].peaks["uce"]),
        )
    ]
    assert cards_of_the_guide == ["from 8 GB", "from 16 GB", "from 16 GB", "from 16 GB", "from 24 GB"]
    published = {"sdxl": 2_567_463_684, "flux-dev": 11_901_408_320, "sd15": 859_520_964}
    for name, count in published.items():
        entry = shipped[name].parameters
        assert entry["transformer" if "transformer" in entry else "unet"] == count
