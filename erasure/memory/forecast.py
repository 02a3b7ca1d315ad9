"""Forecast the memory of sampling and of every method on a model without weights: which phases there are, and what runs in each."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Literal

from erasure.concept import parse_concepts
from erasure.concept_check import POINT_COUNT
from erasure.config.choices import Offload
from erasure.config.registry import list_modules, load_class
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.placement import bytes_of, choose_offload, components_of
from erasure.memory import counts
from erasure.memory.formula import CARDS, FP32, GIB, Forecast, Pass, Phase
from erasure.methods.base import Guided, Method, Trained
from erasure.methods.fia import FIA
from erasure.methods.ssd import SSD
from erasure.recipes import configure_method
from erasure.training.fill_cache import trajectories_at_once
from erasure.training.teacher_cache import TeacherQuery

Component = Literal["text", "denoiser", "vae", "denoiser and text"]  # what computes in a phase
CARD_IMAGES = 2  # images of a model card, made at once
FIA_TENSORS = 5  # fp32 tensors of a layer's size that its saliency keeps: |W|, the total, two sums, and squares


class ModelForecast:
    """Forecasts for one model; what several of them need is counted once.

    Args:
        model: from erasure.loading.skeleton.
        on_gpu: as the skeleton was built.
    """

    def __init__(self, model: DiffusionModel, on_gpu: bool = True) -> None:
        self.model, self.on_gpu = model, on_gpu
        self.sizes = {name: bytes_of(network) for name, network in components_of(model.pipe).items()}
        self.offloads = {card: choose_offload(self.sizes, self.denoiser, card * GIB) if on_gpu else "none" for card in CARDS}
        self._counted: dict[Hashable, Any] = {}

    def sampling(self, batch: int = 1) -> Forecast:
        """Return the memory of generating images, `batch` at once."""
        return Forecast(name="sampling", offloads=self.offloads, phases=self._image_phases(batch, self.model.forwards_per_step))

    def method(self, name: str, batch: int | None = None) -> Forecast:
        """Return the memory of erasing one style with a method and its recipe, with and without gradient checkpointing.

        Args:
            batch: replaces the method's own; methods without one ignore it.
        """
        cls = load_class("erasure.methods", name, Method)
        overrides = {"batch": batch} if batch is not None and issubclass(cls, Trained) else {}
        try:
            method, concepts, _ = configure_method(cls, parse_concepts("concept", kind="style"), self.model.family, overrides)
            method.check_model(self.model)
            plain = Forecast(name=name, offloads=self.offloads, phases=self._method_phases(method, concepts, False))
        except UserError as error:
            return Forecast(name=name, refusal=str(error))
        if not isinstance(method, Trained) or not method.supports_gradient_checkpointing:
            return plain
        return replace(plain, checkpointed=replace(plain, phases=self._method_phases(method, concepts, True)))

    @property
    def denoiser(self) -> str:
        """The component that predicts."""
        return next(iter(self.model.networks))

    def weights(self, component: Component) -> dict[Offload, int]:
        """Return the bytes of weights that are on the device while a component computes, by the offload."""
        text = [size for name, size in self.sizes.items() if name.startswith("text_encoder")]
        denoiser = self.sizes[self.denoiser]
        other = {"text": max(text, default=0), "denoiser": 0, "vae": self.sizes["vae"], "denoiser and text": sum(text)}[component]
        computing = other + (denoiser if component.startswith("denoiser") else 0)
        return {"none": sum(self.sizes.values()), "text": denoiser + other, "all": computing}

    @property
    def method_names(self) -> list[str]:
        return list_modules("erasure.methods")

    def defaults(self) -> list[Forecast]:
        """Return the memory of sampling one image, and of every method as it comes."""
        return [self.sampling(), *(self.method(name) for name in self.method_names)]

    def _phase(self, name: str, alive: int, component: Component = "denoiser", least: int | None = None) -> Phase:
        return Phase(
            name=name,
            weights=self.weights(component),
            work=Pass(forward=alive),
            least=None if least is None else Pass(forward=least),
            on_gpu=self.on_gpu,
        )

    def _prediction_phase(self, name: str, samples: int, branches: int) -> Phase:
        """Return a phase of predictions, whose number at once follows the card."""
        alive, least = (self._count(counts.count_prediction, count, branches) for count in (samples, 1))
        return self._phase(name, alive, least=least)

    def _image_phases(self, batch: int, branches: int) -> tuple[Phase, ...]:
        """Return the phases of generating images."""
        encoding = self._count(counts.count_encoding, batch)
        prediction = self._count(counts.count_prediction, batch, branches)
        decoding = self._count(counts.count_decoding, batch)
        return self._phase("encode", encoding, "text"), self._phase("denoise", prediction), self._phase("decode", decoding, "vae")

    def _method_phases(self, method: Method, concepts: list[Any], checkpointing: bool) -> tuple[Phase, ...]:
        """Return the phases of an erasure: the check whether the model knows the concept, the method's own, and the model card."""
        model = self.model
        branches = model.forwards_per_step + isinstance(method, Guided)
        check = self._prediction_phase("concept check", POINT_COUNT, 1)
        phases = zip(self._image_phases(CARD_IMAGES, branches), self._image_phases(1, branches), strict=True)
        card = [replace(phase, name="model card", least=one.work) for phase, one in phases]
        if isinstance(method, Trained):
            own = [
                phase
                for stage in (method.pretraining(), method)
                if stage
                for phase in self._training_phases(stage, concepts, checkpointing)
            ]
        elif isinstance(method, SSD):  # two sums of squared gradients take the place of Adam's two moments
            own = self._gradient_phases("importance", method, 1, method.query(concepts, 0), checkpointing=False)
        elif isinstance(method, FIA):
            own = [self._phase("saliency", self._saliency_bytes(method, concepts))]
        elif isinstance(method, Guided):
            own = []
        else:
            own = [self._phase("encode", self._count(counts.count_encoding, method.forecast_cost(model, concepts).text_forwards), "text")]
        return check, *own, *card

    def _training_phases(self, method: Trained, concepts: list[Any], checkpointing: bool) -> list[Phase]:
        """Return the phases of a training."""
        return self._gradient_phases("training", method, method.samples_per_backward, method.query(concepts, 0), checkpointing)

    def _gradient_phases(self, name: str, method: Trained | SSD, samples: int, query: TeacherQuery, checkpointing: bool) -> list[Phase]:
        """Return the phases of a method with gradients: prompts are encoded at once, the teacher cache is filled, and steps are taken."""
        model = self.model
        phases = [self._phase("encode", self._count(counts.count_encoding, len(query.all_prompts())), "text")]
        if starts := min(trajectories_at_once(model), len(query.trajectory_starts())):
            phases.append(self._prediction_phase("teacher cache", starts, model.forwards_per_step))
        trained, work = self._count(counts.count_step, method, samples, checkpointing, self.on_gpu)
        weights = self.weights("denoiser and text" if method.region == "text-encoder" else "denoiser")
        phases.append(Phase(name=name, weights=weights, work=work, trained=trained, on_gpu=self.on_gpu))
        return phases

    def _saliency_bytes(self, method: FIA, concepts: list[Any]) -> int:
        """Return what FIA keeps: statistics of every weight, one pass, and for one layer the response of every weight to every prompt."""
        layers = self.model.linear_layers(method.region)
        sizes = [layer.weight.numel() for layer in layers.values()]
        prompts = min(trajectories_at_once(self.model), len(concepts[0].prompt_pairs()))
        passes = prompts * (1 if method.conditional_only else self.model.forwards_per_step)
        responses = prompts * max(sizes) * 2 * FP32 if method.saliency == "full" else 0
        prediction: int = self._count(counts.count_prediction, prompts, passes // prompts)
        return FIA_TENSORS * FP32 * sum(sizes) + prediction + responses

    def _count(self, function: Callable[..., Any], *args: Hashable) -> Any:
        key = (function, self.model.latent_shape, *args)
        if key not in self._counted:
            self._counted[key] = function(self.model, *args)
        return self._counted[key]
