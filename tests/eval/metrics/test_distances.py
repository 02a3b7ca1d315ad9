"""Distances of image sets against closed forms and the libraries, their intervals, and their feature extractors."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics.image.fid
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance

from erasure.errors import UserError
from eval.judges.base import MissingWeights
from eval.metrics._mmd import PairHandling
from eval.metrics.cmmd import CMMD
from eval.metrics.distances import feature_distances
from eval.metrics.features import Extractor, Inception, JudgeFeatures, OpenClipFeatures
from eval.metrics.fid import FID
from eval.metrics.image_distances import kid_of_different_noise
from eval.metrics.kid import KID
from eval.records.distances import ModelPairKid
from eval.records.models import BASE, ERASED

KERNELS = [KID, CMMD]


def filled(metric: Metric, first: Tensor, second: Tensor, batches: int = 1) -> Metric:
    for a, b in zip(first.chunk(batches), second.chunk(batches), strict=True):
        metric.update(a, True)
        metric.update(b, False)
    return metric


def normal(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def with_moments(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """Features (n, d) whose own mean is `mean` and whose own covariance is root root^T, to rounding."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ root.T + mean


class Flat(nn.Module):
    """A network whose features are the pixels: what torchmetrics' own class needs to be compared with."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def test_fid_of_known_gaussians_is_the_closed_form() -> None:
    """Diagonal covariances: sum (m - m')^2 + sum (s - s')^2. Others: tr (S S')^(1/2) is the sum of singular values of R^T R'."""
    a, b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.2, 0.5]).double()
    mean = torch.tensor([0.0, 1.0, -2.0]).double()
    distances = filled(FID(3), with_moments(50, mean * 0, a.diag(), 0), with_moments(70, mean, b.diag(), 1)).compute()
    assert distances.item() == pytest.approx((mean.square().sum() + (a - b).square().sum()).item(), abs=1e-9)
    roots = normal(6, 3, 2).reshape(2, 3, 3)
    distances = filled(FID(3), with_moments(50, mean, roots[0], 3), with_moments(50, mean, roots[1], 4)).compute()
    closed = roots.square().sum() - 2 * torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    assert distances.item() == pytest.approx(closed.item(), abs=1e-9)


@pytest.mark.parametrize("n", [8, 200])  # fewer and more than the width of 12
def test_fid_is_torchmetrics_fid(n: int) -> None:
    images = torch.randint(256, (2, n, 3, 2, 2), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    library = filled(FrechetInceptionDistance(feature=Flat()), images[0], images[1]).compute()
    ours = filled(FID(12), images[0].flatten(1).float(), images[1].flatten(1).float()).compute()
    assert ours.item() == pytest.approx(library.item(), rel=1e-7)
    assert ours.dtype == torch.double


def test_the_bias_of_fid_falls_as_one_over_n() -> None:
    def mean_fid(n: int) -> float:
        values = [filled(FID(8), normal(n, 8, 2 * i), normal(n, 8, 2 * i + 1)).compute().item() for i in range(10)]
        return sum(values) / len(values)

    assert mean_fid(100) / mean_fid(800) == pytest.approx(8, rel=0.25)


def test_fid_is_exact_where_n_is_below_the_width() -> None:
    """From the features themselves, tr (S S')^(1/2) is the sum of singular values of X X'^T / (n - 1), X and X' about their means."""
    first, second = normal(20, 64, 0), normal(20, 64, 1)
    x, y = first - first.mean(0), second - second.mean(0)
    spread = (x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()) / 19
    closed = (first.mean(0) - second.mean(0)).square().sum() + spread
    assert filled(FID(64), first, second).compute().item() == pytest.approx(closed.item(), rel=1e-11)
    assert 0 <= filled(FID(64), first, first).compute().item() < 1e-11


@pytest.mark.parametrize("build", [lambda: FID(5), KID, CMMD])
def test_two_halves_merged_are_one_pass(build: Callable[[], Metric]) -> None:
    first, second = normal(30, 5, 0), normal(30, 5, 1) + 0.5
    whole = filled(build(), first, second, batches=3).compute()
    halves = [filled(build(), first[part], second[part]) for part in (slice(15), slice(15, 30))]
    halves[0].merge_state(halves[1])
    assert torch.as_tensor(halves[0].compute()).tolist() == pytest.approx(torch.as_tensor(whole).tolist(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("build", [lambda: FID(5), KID, CMMD])
def test_too_few_images_have_no_distance(build: Callable[[], Metric]) -> None:
    """One has none; two have no interval of a kernel distance, since without one of them no pair is left."""
    few, message = (1, "two images") if isinstance(build(), FID) else (2, "three images")
    with pytest.raises(UserError, match=message):
        filled(build(), normal(9, 5, 0), normal(few, 5, 1)).compute()
    with pytest.raises(UserError, match=message):
        build().compute()


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kid_is_torchmetrics_kid_over_all_images() -> None:
    images = torch.rand(2, 25, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    library = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=25)
    ours = filled(KID(), images[0].flatten(1), images[1].flatten(1)).compute()
    assert ours.estimate == pytest.approx(filled(library, images[0], images[1]).compute()[0].item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_the_reported_kid_of_pairs_is_the_librarys() -> None:
    """Same prompts, same noise: the usual value compares an image with its twin and so is far below zero."""
    base = torch.rand(25, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    erased = base + 0.01 * torch.rand(25, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    library = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=25)
    kid = feature_distances(base.flatten(1), erased.flatten(1), "judge").kid
    expected = filled(library, base, erased).compute()[0].item()
    assert kid.all.value == pytest.approx(expected, rel=1e-4) and expected < -0.02
    assert abs(kid.different_noise.value) < 0.002


def test_cmmd_by_hand() -> None:
    first, second = normal(4, 3, 0), normal(5, 3, 1)

    def k(x: Tensor, y: Tensor) -> float:
        return float(torch.exp(-(x / x.norm() - y / y.norm()).square().sum() / 200))

    within = [sum(k(x, y) for x in z for y in z if x is not y) for z in (list(first), list(second))]
    cross = sum(k(x, y) for x in first for y in second)
    assert filled(CMMD(), first, second).compute().estimate == pytest.approx(
        1000 * (within[0] / (4 * 3) + within[1] / (5 * 4) - 2 * cross / (4 * 5)), abs=1e-9
    )


@pytest.mark.parametrize("metric", KERNELS)
@pytest.mark.parametrize("pairs", ["none", "included", "excluded"])
def test_the_block_size_changes_nothing(metric: type[Metric], pairs: PairHandling) -> None:
    first, second = normal(23, 6, 0), normal(23, 6, 1)
    blocked, whole = (filled(metric(pairs=pairs, block=block), first, second).compute() for block in (4, 1024))
    assert list(blocked) == pytest.approx(list(whole), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("metric", KERNELS)
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_kernel_distances_of_one_distribution_average_to_zero(metric: type[Metric], share: float) -> None:
    """`share` is what twins have in common: 0 for independent sides, near 1 where erasing hardly changed an image."""
    estimates = []
    for i in range(150):
        first, own = normal(12, 4, 2 * i), normal(12, 4, 2 * i + 1)
        second = share * first + (1 - share**2) ** 0.5 * own
        estimates.append(filled(metric(pairs="excluded" if share else "none"), first, second).compute().estimate)
    mean, standard_error = sum(estimates) / 150, torch.tensor(estimates).std().item() / 150**0.5
    assert abs(mean) < 3 * standard_error
    assert min(estimates) < 0 < max(estimates)


@pytest.mark.parametrize("metric", KERNELS)
def test_unchanged_twins_are_at_distance_zero(metric: type[Metric]) -> None:
    features = normal(15, 4, 0)
    assert list(filled(metric(pairs="excluded"), features, features).compute()) == pytest.approx([0, 0, 0], abs=1e-9)
    # treated as independent images, they are below zero by as much as an image is nearer to itself than to others
    usual = filled(metric(pairs="included"), features, features).compute()
    assert usual.estimate == filled(metric(), features, features).compute().estimate < -0.01
    assert (
        usual.low <= usual.estimate <= usual.high < 0
    )  # the jackknife leaves out both twins, so the interval reflects that they are alike
    with pytest.raises(UserError, match="as many on both"):
        filled(metric(pairs="excluded"), features, features[:9]).compute()


@pytest.mark.parametrize("metric", KERNELS)
@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("pairs", ["none", "included", "excluded"])
def test_the_interval_covers_the_truth_and_its_estimate(metric: type[Metric], pairs: PairHandling, shift: float, n: int) -> None:
    """The truth is the mean of many samples, which is the expectation; 0 for equal distributions, where no twins are compared.

    Of 300 to 1,200 samples (width 8; twins with a correlation of 0.9 unless "none"), how many percent of the intervals held the
    truth: of an earlier bootstrap over images, of a bootstrap that never compares copies of an image with its twin, and of the
    jackknife; and how many percent of the first held their own estimate (of the other two all did):

    n = 20, 50, 200             bootstrap        no copies       jackknife       own estimate
    KID   none      equal       100, 100, 100    100, 100, 100   99, 99, 98      100, 100, 100
    KID   none      shifted      96,  96,  95     95,  96,  97   95, 96, 95      100, 100, 100
    KID   included  equal        48,   4,   0     89,  93,  97   92, 95, 94       30,   0,   0
    KID   included  shifted      60,  54,  82     93,  91,  94   97, 94, 95       81,  86, 100
    KID   excluded  equal       100, 100, 100    100, 100, 100   100, 100, 99    100, 100, 100
    KID   excluded  shifted      89,  91,  94     90,  91,  94   92, 94, 95      100, 100, 100
    CMMD  none      equal       100, 100,  99    100, 100,  99   98, 98, 96      100, 100, 100
    CMMD  none      shifted      98,  95,  94     98,  95,  92   96, 95, 96      100, 100, 100
    CMMD  included  equal         0,   0,   0    100, 100,  99   98, 98, 97        0,   0,   0
    CMMD  included  shifted      64,  77,  89     93,  92,  93   94, 94, 96       79, 100, 100
    CMMD  excluded  equal        99, 100, 100     99, 100,  99   99, 99, 98      100, 100, 100
    CMMD  excluded  shifted      93,  93,  93     93,  93,  93   94, 94, 96      100, 100, 100
    """
    intervals = []
    for i in range(150):
        first, own = normal(n, 8, 2 * i), normal(n, 8, 2 * i + 1)
        second = own if pairs == "none" else 0.9 * first + 0.19**0.5 * own
        intervals.append(filled(metric(pairs=pairs), first, second + shift).compute())
    truth = sum(interval.estimate for interval in intervals) / len(intervals) if shift or pairs == "included" else 0.0
    assert sum(interval.low <= truth <= interval.high for interval in intervals) >= 0.88 * len(intervals)
    assert all(interval.low < interval.estimate < interval.high for interval in intervals)


@pytest.mark.parametrize("metric", KERNELS)
@pytest.mark.parametrize("pairs", ["none", "included", "excluded"])
def test_the_interval_is_the_jackknife_over_images(metric: type[Metric], pairs: PairHandling) -> None:
    """Compute the distance anew without each image, or without each pair; Student's t of 8 degrees of freedom is 2.306."""
    first, second = normal(9, 4, 0), normal(9, 4, 1)

    def without(i: int, j: int) -> float:
        masks = [torch.arange(9) != index for index in (i, j)]
        return float(filled(metric(pairs=pairs), first[masks[0]], second[masks[1]]).compute().estimate)

    left_out = [[(i, i) for i in range(9)]] if pairs != "none" else [[(i, -1) for i in range(9)], [(-1, i) for i in range(9)]]
    variance = sum(8 * torch.tensor([without(*pair) for pair in side]).double().var(correction=0) for side in left_out)
    interval = filled(metric(pairs=pairs), first, second).compute()
    half_width = 2.3060041 * float(variance) ** 0.5
    assert list(interval) == pytest.approx([interval.estimate, interval.estimate - half_width, interval.estimate + half_width], rel=1e-6)


@pytest.mark.parametrize("metric", KERNELS)
@pytest.mark.parametrize("pairs", ["none", "excluded"])
def test_an_interval_is_the_same_in_any_order(metric: type[Metric], pairs: PairHandling) -> None:
    first, second = normal(20, 4, 0), normal(20, 4, 1)
    reordered = second.flip(0) if pairs == "excluded" else second
    assert filled(metric(pairs=pairs), first.flip(0), reordered).compute() == filled(metric(pairs=pairs), first, second).compute()


def test_sides_of_different_size_have_an_interval() -> None:
    interval = filled(KID(block=7), normal(30, 4, 0), normal(12, 4, 1) + 1).compute()
    assert interval.low < interval.estimate < interval.high
    swapped = filled(KID(), normal(12, 4, 1) + 1, normal(30, 4, 0)).compute()
    assert list(swapped) == pytest.approx(list(interval))


def test_the_interval_of_a_model_distance_holds_its_estimate() -> None:
    """For nearly equal features, as of an erased and a retrained model."""
    base = normal(12, 6, 0)
    kid = kid_of_different_noise(BASE, ERASED, {BASE: base, ERASED: base + 0.01 * normal(12, 6, 1)})
    assert kid.low is not None and kid.value is not None and kid.high is not None
    assert kid.low < kid.value < kid.high
    few = kid_of_different_noise(BASE, ERASED, {BASE: base[:2], ERASED: base[:2]})
    assert few == ModelPairKid(first=BASE, second=ERASED, value=None, low=None, high=None)


def test_an_erased_model_that_is_the_base_is_as_far_as_the_halves_of_the_base() -> None:
    base = normal(41, 6, 0)
    distances = feature_distances(base, base, "judge")
    for by_comparison in (distances.fid, distances.kid, distances.cmmd):
        assert by_comparison.base_halves == by_comparison.erased_halves
        assert by_comparison.base_halves.n == (20, 20)
        assert by_comparison.all.n == (41, 41)
        assert (by_comparison.different_noise or by_comparison.all).value == pytest.approx(0, abs=1e-9)
        records = [record for record in vars(by_comparison).values() if record]
        assert all(record.extractor == "judge" and record.width == 6 and record.reason is None for record in records)
        assert feature_distances(base, base, "judge") == distances
    assert distances.fid.different_noise is None and distances.kid.different_noise and distances.cmmd.different_noise
    assert distances.kid.all.value < 0 > distances.cmmd.all.value  # an image is nearest to itself
    assert distances.fid.base_halves.value > 0.5
    assert distances.fid.base_halves.low is None
    assert distances.kid.base_halves.low < distances.kid.base_halves.value < distances.kid.base_halves.high


def test_halves_share_no_image() -> None:
    """Every image is an axis of its own: x.y is 0 except for an image with itself, so a shared one would make the distance negative."""
    distances = feature_distances(torch.eye(20), torch.eye(20), "judge")
    assert distances.kid.base_halves.value == distances.kid.erased_halves.value == 0.0
    unpaired = feature_distances(torch.eye(20), torch.eye(20), "judge", paired=False)
    assert unpaired.kid.all.value < 0


def test_a_changed_model_is_further_than_the_halves_of_the_base() -> None:
    base = normal(60, 6, 0)
    distances = feature_distances(base, base + 1, "judge")
    for by_comparison in (distances.fid, distances.kid, distances.cmmd):
        assert by_comparison.erased_halves.value > by_comparison.base_halves.value
        assert by_comparison.erased_halves.value > 0
    assert distances.kid.erased_halves.low > 0 > distances.kid.base_halves.low
    unequal = feature_distances(base, base[:40] + 1, "judge", paired=False)
    assert unequal.fid.all.n == (60, 40)
    assert unequal.fid.erased_halves.n == unequal.fid.base_halves.n == (20, 20)


def test_too_few_images_are_named() -> None:
    distances = feature_distances(normal(3, 4, 0), normal(3, 4, 1), "judge")
    for metric, by_comparison in vars(distances).items():
        assert by_comparison.all.value is not None
        assert by_comparison.base_halves.value is None
        least = "two" if metric == "fid" else "three"
        assert by_comparison.base_halves.reason == by_comparison.erased_halves.reason == f"fewer than {least} images on a side"
    with pytest.raises(UserError, match=r"\(3, 4\) and \(2, 4\)"):
        feature_distances(normal(3, 4, 0), normal(2, 4, 1), "judge")
    with pytest.raises(UserError, match="one width"):
        feature_distances(normal(3, 4, 0), normal(3, 5, 1), "judge")


@pytest.mark.parametrize(("extractor", "width"), [(JudgeFeatures(), 256), (OpenClipFeatures(), 96)])
def test_extractors_that_come_with_the_package(extractor: Extractor, width: int) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = extractor.features(images)
    assert features.shape == (3, width)
    assert features.dtype == torch.float32
    assert torch.allclose(extractor.features(images[1:2]), features[1:2], atol=1e-5)
    assert extractor.identity()["name"] == extractor.name
    assert extractor.identity() == type(extractor)().identity()


def test_the_name_of_an_extractor_names_its_weights() -> None:
    assert JudgeFeatures().name == "judge"
    assert OpenClipFeatures().name == "open_clip pocket"
    assert OpenClipFeatures(model="ViT-L-14-336", pretrained="openai").name == "open_clip ViT-L-14-336 openai"
    with pytest.raises(UserError, match="64x64"):
        JudgeFeatures().features(torch.zeros(1, 3, 32, 32))


class Unsafe:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def test_inception_quantizes_images_and_loads_weights_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    weights, states = tmp_path / "random.pth", []
    torch.save({}, weights)
    with monkeypatch.context() as patch:  # torch-fidelity's class cannot be built without weights
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda self, state: states.append(self.state_dict()))
        NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    torch.manual_seed(0)
    torch.save({n: torch.randn_like(p) * (2 / p[0].numel()) ** 0.5 if p.dim() > 1 else p for n, p in states[0].items()}, weights)

    images = torch.randint(255, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    features = Inception(weights=weights).features(images / 255)
    assert features.shape == (1, 2048)
    assert features.std() > 0
    assert torch.equal(Inception(weights=weights).features((images + 0.6) / 255), Inception(weights=weights).features((images + 1) / 255))
    assert not torch.equal(Inception(weights=weights).features((images + 1) / 255), features)
    assert Inception(weights=weights).identity()["name"] == "inception"

    torch.save({"fc.bias": Unsafe(tmp_path / "ran")}, tmp_path / "unsafe.pth")
    for name, content in (("unsafe.pth", None), ("empty.pth", {})):
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=name):
            Inception(weights=tmp_path / name).features(images)
    assert not (tmp_path / "ran").exists()


def test_inception_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeights, match=r"none\.pth"):
        Inception(weights=tmp_path / "none.pth").features(torch.zeros(1, 3, 8, 8))
    torch.save({}, tmp_path / "some.pth")
    monkeypatch.setattr(torchmetrics.image.fid, "_TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(MissingWeights, match=r"erasure-studio\[fid\]"):
        Inception(weights=tmp_path / "some.pth").features(torch.zeros(1, 3, 8, 8))
